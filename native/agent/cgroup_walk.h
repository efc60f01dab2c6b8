/* The cgroups below one, however many and however deep a container has made them. */
#ifndef RUNDCTL_AGENT_CGROUP_WALK_H
#define RUNDCTL_AGENT_CGROUP_WALK_H

#include <stdint.h>

struct cgroup_visitor {
	void (*enter)(int cgroup, void *data);			 /* before those below it; may be NULL */
	void (*leave)(int parent, const char *name, void *data); /* after them; may be NULL */
	void *data;
};

/* Visits all cgroups below `cgroup`, not itself. Nothing recurses and one descriptor or two are open, so that a container sets
 * no limit by how it nests: what grows is a stack of names, of which the kernel has more for each of these cgroups, and all of
 * them are the guest's memory. The time ends at `deadline_ms` of CLOCK_MONOTONIC.
 * -ETIMEDOUT: some were not visited. -ENOMEM, -EMFILE ...: the same. A cgroup that goes meanwhile is passed over. */
int cgroup_walk(int cgroup, const struct cgroup_visitor *visitor, int64_t deadline_ms);

#endif
