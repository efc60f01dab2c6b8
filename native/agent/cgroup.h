/* The container's cgroup inside the guest: made when cgroup2 is mounted where the guest has it, else done without. */
#ifndef RUNDCTL_AGENT_CGROUP_H
#define RUNDCTL_AGENT_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

/* Called once by an agent that has booted: one that runs on a host keeps off the host's cgroups. */
void cgroup_enable(void);
/* Makes and opens the cgroup of a container: a descriptor, -1 when cgroup2 is not there, or another -errno. */
int cgroup_make(uint16_t container);
/* Sends a signal to every process in the cgroup and below it, which stand still meanwhile; -ESRCH if there was none, -ETIMEDOUT,
 * -ENOMEM ... if it may not have reached all. */
int cgroup_signal(int cgroup, int signal);
/* Whether the kernel has killed a process in the cgroup, or below it, for want of memory. */
bool cgroup_saw_oom_kill(int cgroup);
/* Removes the cgroup of a container with all that is below it, as far as ten seconds allow; processes in it are killed. */
void cgroup_remove(uint16_t container, int cgroup);

#endif
