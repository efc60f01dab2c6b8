/* What KVM does to cgroups, ahead of it. */
#ifndef RUNDCTL_SHIM_ATTACH_H
#define RUNDCTL_SHIM_ATTACH_H

/* Takes the lock that KVM is going to take, and waits for it. Nothing depends on it but time. `procs`: `cgroup.procs` of a cgroup that this process is in, -1:
 * no need. */
void attach(int procs);
/* Has a child do so, which is reaped as any other. */
void attach_ahead(int procs);

#endif
