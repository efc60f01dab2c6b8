/* Paths of operations: below the container's root once ROOT has named it, the guest's own before. */
#ifndef RUNDCTL_AGENT_PATH_H
#define RUNDCTL_AGENT_PATH_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "plan.h"

/* All return a descriptor (close-on-exec) or -errno. Symbolic links of the container's root never lead out of it. */
int path_open(const struct plan_context *context, const char *path, int flags);
/* The directory at `path` as O_PATH; missing ones are made, the last with `mode`, its parents with 0755. */
int path_make_directory(const struct plan_context *context, const char *path, mode_t mode, bool *made);
/* The directory that holds `path`, made if missing; `name` receives the last component. */
int path_make_parent(const struct plan_context *context, const char *path, char name[NAME_MAX + 1]);
/* What is at `path` as O_PATH; if nothing is, an empty file, also at the far end of dangling symbolic links. */
int path_make_file(const struct plan_context *context, const char *path);

#endif
