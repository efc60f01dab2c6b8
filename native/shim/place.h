/* A place among the host's files: where it is, what is below it, a copy of the mount it lies on. */
#ifndef RUNDCTL_SHIM_PLACE_H
#define RUNDCTL_SHIM_PLACE_H

#include <limits.h>
#include <stdbool.h>

/* Where an open file is; -errno. */
int path_of(int fd, char path[PATH_MAX]);
/* A descriptor, O_PATH, of what is there without leaving the directory or following a link; -errno. */
int open_beneath(int directory, const char *path);
/* A private, detached copy of the mount that `fd` lies on, of nothing that is mounted below, without devices, read-only if asked; a descriptor or
 * -errno. */
int mount_copy(int fd, bool read_only);

#endif
