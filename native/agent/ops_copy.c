/* tmpcopyup: a new file system gets a copy of what its mount point held. As in runc: names, types, modes, owners and
 * contents; not times, extended attributes or hard links. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "plan.h"

enum { DEPTH_MAX = 128, COPY_CHUNK = 1024 * 1024 };

static int copy_directory(int from, int to, unsigned depth);

static int copy_contents(int from, int to)
{
	ssize_t copied;

	do
		copied = sendfile(to, from, NULL, COPY_CHUNK);
	while (copied > 0);
	return check(copied);
}

static int copy_file(int from, int to, const char *name)
{
	cleanup_close int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (source < 0)
		return -errno;
	cleanup_close int copy = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return copy < 0 ? -errno : copy_contents(source, copy);
}

static int copy_link(int from, int to, const char *name)
{
	char text[PATH_MAX];
	ssize_t length = readlinkat(from, name, text, sizeof(text) - 1);

	if (length < 0)
		return -errno;
	text[length] = '\0';
	return check(symlinkat(text, to, name));
}

static int copy_below(int from, int to, const char *name, unsigned depth)
{
	if (mkdirat(to, name, 0700) < 0)
		return -errno;
	cleanup_close int source = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (source < 0)
		return -errno;
	cleanup_close int copy = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return copy < 0 ? -errno : copy_directory(source, copy, depth + 1);
}

/* Owner first: chown(2) drops set-id bits. */
static int copy_owner(int to, const char *name, const struct stat *status)
{
	if (fchownat(to, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return S_ISLNK(status->st_mode) ? 0 : check(fchmodat(to, name, status->st_mode & 07777, 0));
}

static int copy_entry(int from, int to, const char *name, unsigned depth)
{
	struct stat status;
	int error;

	if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (S_ISREG(status.st_mode))
		error = copy_file(from, to, name);
	else if (S_ISDIR(status.st_mode))
		error = copy_below(from, to, name, depth);
	else if (S_ISLNK(status.st_mode))
		error = copy_link(from, to, name);
	else
		error = check(mknodat(to, name, status.st_mode, status.st_rdev));
	return error ? error : copy_owner(to, name, &status);
}

/* Reads `from` to its end. Takes neither descriptor. */
static int copy_directory(int from, int to, unsigned depth)
{
	int error = depth > DEPTH_MAX ? -ELOOP : 0;
	int duplicate = fcntl(from, F_DUPFD_CLOEXEC, 0);
	cleanup_closedir DIR *directory = duplicate < 0 ? NULL : fdopendir(duplicate);
	struct dirent *entry;

	if (!directory) {
		error = -errno;
		close_fd(&duplicate);
		return error;
	}
	while (!error && (errno = 0, entry = readdir(directory)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			error = copy_entry(from, to, entry->d_name, depth);
	return error ? error : -errno;
}

int copy_up(int from, int to)
{
	cleanup_close int source = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (source < 0)
		return -errno;
	cleanup_close int copy = openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return copy < 0 ? -errno : copy_directory(source, copy, 0);
}
