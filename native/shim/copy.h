/* What a guest is to see of the host's mounts, as detached copies. */
#ifndef RUNDCTL_SHIM_COPY_H
#define RUNDCTL_SHIM_COPY_H

#include <stdbool.h>
#include <stddef.h>

#include "mountinfo.h"

/* One mount of a copy. */
struct piece {
	char *path;		   /* from the source on; "": the source's */
	size_t parent;		   /* the piece that this one is mounted in */
	const char *rest;	   /* the path from there on */
	unsigned long long number; /* of the mount that it is a copy of */
	int place;		   /* that mount, O_PATH, while it is collected */
	int tree;		   /* the copy */
	bool is_laid;		   /* in the guest's sight */
	bool is_empty;		   /* nothing is in the copy, or, of a procfs, less */
	bool read_only;
	char *part; /* if that mount is a procfs's: what of it, as a path from its root on; NULL: of processes, or of something else */
};
/* A source's copy: first the source's, then what is mounted below, each after what it is mounted in. */
struct copy {
	struct piece *pieces;
	size_t count;
	bool recursive, read_only;
};
/* Copies the mount that `source` lies on, and if `recursive` each one below it, in the host's mount namespace, for a mount elsewhere cannot be copied. A procfs
 * is not: nothing is in its place. -errno; -EBUSY: what is mounted there is renamed or changed all the time. */
int copy_collect(struct copy *copy, struct mounts *mounts, int source, bool recursive, bool read_only);
/* Mounts all of it; -errno as above. */
int copy_lay(struct copy *copy, int directory, const char *name);
void copy_free(struct copy *copy);

#endif
