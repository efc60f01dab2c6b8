/* Paths that stay below the container's root, and what has to be made on the way.
 *
 * The kernel does the resolving (RESOLVE_IN_ROOT). What it does not do is make what is missing: that goes component by
 * component, each in the descriptor of its parent. Images contain dangling links that are meant to be filled
 * (/etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf), so a link in the way is replaced by its text and the
 * walk starts again. Nobody else changes the tree meanwhile: the container's first process is not yet running. */
#include "path.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cleanup.h"

enum {
	LINKS_MAX = 40,	       /* as the kernel */
	PARENT_MODE = 0755,    /* of directories made on the way, as runc */
	FILE_MODE = 0755,      /* of an empty file made as mount point: as runc makes it, for in a persistent root it stays */
	WALK_AGAIN = -ERESTART /* a link was replaced by its text */
};

int path_open(const struct plan_context *context, const char *path, int flags)
{
	struct open_how how = {.flags = (unsigned)(flags | O_CLOEXEC)};
	int directory = AT_FDCWD;

	if (context->root >= 0) {
		how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
		directory = context->root;
	}
	int fd = (int)syscall(SYS_openat2, directory, path, &how, sizeof(how));
	return fd < 0 ? -errno : fd;
}

/* Replaces the component work[start..end), a symbolic link in `directory`, by its text. */
static int splice_link(int directory, char work[PATH_MAX], size_t start, size_t end, const char *name)
{
	char text[PATH_MAX], rest[PATH_MAX];
	ssize_t length = readlinkat(directory, name, text, sizeof(text) - 1);

	if (length < 0)
		return errno == EINVAL ? -EEXIST : -errno;
	text[length] = '\0';
	if (text[0] == '/')
		start = 0;
	size_t rest_length = strlen(work + end);
	if (start + (size_t)length + rest_length >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(rest, work + end, rest_length + 1);
	memcpy(work + start, text, (size_t)length);
	memcpy(work + start + length, rest, rest_length + 1);
	return WALK_AGAIN;
}

/* Opens the longest part of `work` that exists; `*split` becomes its length. */
static int open_deepest(const struct plan_context *context, const char *work, size_t *split)
{
	char part[PATH_MAX];
	size_t length = strlen(work);

	memcpy(part, work, length + 1);
	for (;;) {
		while (length > 0 && part[length - 1] != '/')
			length--;
		while (length > 1 && part[length - 1] == '/')
			length--;
		part[length] = '\0';
		int fd = path_open(context, length ? part : ".", O_PATH | O_DIRECTORY);
		if (fd != -ENOENT || length <= 1) {
			*split = length;
			return fd;
		}
	}
}

/* Copies the component that starts at `start` (after slashes) and says where it ends; false at the end of the path. */
static bool component(const char *work, size_t *start, size_t *end, char name[NAME_MAX + 1])
{
	*start += strspn(work + *start, "/");
	size_t length = strcspn(work + *start, "/");

	*end = *start + length;
	if (length == 0 || length > NAME_MAX)
		return false;
	memcpy(name, work + *start, length);
	name[length] = '\0';
	return true;
}

static int make_component(int directory, const char *name, mode_t mode)
{
	if (mkdirat(directory, name, mode) < 0)
		return -errno;
	int fd = openat(directory, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* One walk: a descriptor, -errno, or WALK_AGAIN with `work` changed. */
static int walk_directory(const struct plan_context *context, char work[PATH_MAX], mode_t mode, bool *made)
{
	cleanup_close int fd = path_open(context, work, O_PATH | O_DIRECTORY);
	char name[NAME_MAX + 1];
	size_t start = 0, end = 0;

	if (fd != -ENOENT)
		return take_fd(&fd);
	fd = open_deepest(context, work, &end);
	while (fd >= 0 && (start = end, component(work, &start, &end, name))) {
		if (strcmp(name, ".") == 0)
			continue;
		if (strcmp(name, "..") == 0)
			return -ENOENT;
		bool last = work[end + strspn(work + end, "/")] == '\0';
		int next = make_component(fd, name, last ? mode : PARENT_MODE);
		if (next == -EEXIST)
			return splice_link(fd, work, start, end, name);
		*made = last;
		close_fd(&fd);
		fd = next;
	}
	return fd >= 0 && work[start] != '\0' ? -ENAMETOOLONG : take_fd(&fd);
}

static int copy_path(char work[PATH_MAX], const char *path)
{
	size_t length = strlen(path);

	if (length == 0 || length >= PATH_MAX)
		return length ? -ENAMETOOLONG : -ENOENT;
	memcpy(work, path, length + 1);
	return 0;
}

static int make_directory(const struct plan_context *context, char work[PATH_MAX], mode_t mode, bool *made)
{
	int fd = WALK_AGAIN;

	for (int links = 0; fd == WALK_AGAIN && links < LINKS_MAX; links++)
		fd = walk_directory(context, work, mode, made);
	return fd == WALK_AGAIN ? -ELOOP : fd;
}

int path_make_directory(const struct plan_context *context, const char *path, mode_t mode, bool *made)
{
	char work[PATH_MAX];
	int error = copy_path(work, path);

	*made = false;
	return error ? error : make_directory(context, work, mode, made);
}

/* Splits off the last component; `*start` is where it begins in `work`. */
static int split_parent(const struct plan_context *context, const char *work, size_t *start, char name[NAME_MAX + 1])
{
	char parent[PATH_MAX];
	size_t end = strlen(work);
	bool made;

	while (end > 1 && work[end - 1] == '/')
		end--;
	for (*start = end; *start > 0 && work[*start - 1] != '/';)
		--*start;
	size_t length = end - *start;
	if (length == 0 || length > NAME_MAX)
		return length ? -ENAMETOOLONG : -EINVAL;
	memcpy(name, work + *start, length);
	name[length] = '\0';
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return -EINVAL;
	if (*start == 0)
		return path_open(context, ".", O_PATH | O_DIRECTORY);
	memcpy(parent, work, *start);
	parent[*start] = '\0';
	return make_directory(context, parent, PARENT_MODE, &made);
}

int path_make_parent(const struct plan_context *context, const char *path, char name[NAME_MAX + 1])
{
	char work[PATH_MAX];
	size_t start;
	int error = copy_path(work, path);

	return error ? error : split_parent(context, work, &start, name);
}

/* One try to make the file at `work`: 0, -errno, or WALK_AGAIN with `work` changed. */
static int walk_file(const struct plan_context *context, char work[PATH_MAX])
{
	char name[NAME_MAX + 1];
	size_t start;
	cleanup_close int parent = split_parent(context, work, &start, name);

	if (parent < 0)
		return parent;
	cleanup_close int fd = openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);
	if (fd >= 0)
		return 0;
	return errno == EEXIST ? splice_link(parent, work, start, strlen(work), name) : -errno;
}

int path_make_file(const struct plan_context *context, const char *path)
{
	char work[PATH_MAX];
	int error = copy_path(work, path);

	for (int links = 0; !error && links < LINKS_MAX; links++) {
		int fd = path_open(context, work, O_PATH);
		if (fd != -ENOENT)
			return fd;
		error = walk_file(context, work);
		if (error == WALK_AGAIN)
			error = 0;
	}
	return error ? error : -ELOOP;
}
