/* The table of mounts of this process's mount namespace. */
#ifndef RUNDCTL_SHIM_MOUNTINFO_H
#define RUNDCTL_SHIM_MOUNTINFO_H

#include <stdbool.h>
#include <stddef.h>

/* One line: a mount's number, what of its file system is mounted, and where. */
struct mounted {
	unsigned long long number, parent;
	char *root, *target;
};
/* By targets: what is mounted in a mount comes after it. */
struct mounts {
	char *text;
	struct mounted *list;
	size_t count;
	bool is_read;
};
/* Reads the table, unless it was read since it was freed; -errno. */
int mounts_read(struct mounts *mounts);
void mounts_free(struct mounts *mounts);
const struct mounted *mounts_find(const struct mounts *mounts, unsigned long long number);
/* Whether the table shows it from a directory on, which is at `path` in the mount `source`: below it, and nothing is mounted over it. */
bool mounts_shows(const struct mounts *mounts, const struct mounted *mounted, unsigned long long source, const char *path);
/* The path from the directory on, or NULL if it is not below it; an empty directory: NULL. */
const char *path_below(const char *path, const char *directory);

#endif
