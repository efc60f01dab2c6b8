/* What a guest sees where the host has a procfs. */
#ifndef RUNDCTL_SHIM_PROCFS_H
#define RUNDCTL_SHIM_PROCFS_H

#include <stddef.h>

#include "copy.h"

/* A detached mount of nothing for a directory or file; a descriptor or -errno. */
int mount_nothing(int place);
/* Gives each procfs of the copies a procfs without processes in its place; -errno. One is made for all, on `path`, where it stays below what is mounted there
 * next. */
int procfs_cover(struct copy *copies, size_t count, const char *path);

#endif
