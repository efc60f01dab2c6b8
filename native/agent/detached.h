/* Mounts that are nowhere in the tree yet: copies of those that are, to be placed where the plan wants them. */
#ifndef RUNDCTL_AGENT_DETACHED_H
#define RUNDCTL_AGENT_DETACHED_H

#include "plan.h"

/* A detached copy of the mount at `path` below `directory`, as a descriptor or -errno. */
int copy_mount(int directory, const char *path, unsigned flags);
/* Puts it on what `target` is open on; 0 or -errno. */
int place_mount(int mount, int target);
/* Takes hold of the guest's /dev/null while it can still be reached; 0 or -errno. */
int hold_null_mount(struct plan_context *context);

#endif
