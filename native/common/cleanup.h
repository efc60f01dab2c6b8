/* Ownership by attribute: a resource is released where its variable's scope ends, on every path. */
#ifndef RUNDCTL_CLEANUP_H
#define RUNDCTL_CLEANUP_H

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Closes *fd when it is open and marks it closed; keeps errno, because it runs on error paths. */
static inline void close_fd(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
	errno = saved;
}

static inline void free_pointer(void *pointer)
{
	int saved = errno;

	free(*(void **)pointer);
	errno = saved;
}

static inline void close_directory(DIR **directory)
{
	if (*directory)
		(void)closedir(*directory);
	*directory = NULL;
}

/* Hands the descriptor to the caller: `return take_fd(&fd);`. */
static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

#define cleanup_close __attribute__((cleanup(close_fd)))
#define cleanup_free __attribute__((cleanup(free_pointer)))
#define cleanup_closedir __attribute__((cleanup(close_directory)))

#endif
