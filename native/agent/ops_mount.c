/* Operations on mounts.
 *
 * After PIVOT the container may have no procfs, so nothing here goes through /proc/self/fd: a mount is made on "." after
 * fchdir to its target, or is made detached and then moved onto the target's descriptor. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "cleanup.h"
#include "detached.h"
#include "path.h"
#include "plan.h"

/* Flags of a super block: a bind-remount cannot change them, and mount(2) ignores them there just so. */
#define SUPERBLOCK_FLAGS (MS_SYNCHRONOUS | MS_MANDLOCK | MS_DIRSYNC | MS_SILENT | MS_POSIXACL | MS_I_VERSION | MS_LAZYTIME)
#define ATIME_FLAGS (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)

enum {
	DEVICE_TRIES = 5000, /* times DEVICE_PAUSE_NS */
	DEVICE_PAUSE_NS = 2 * 1000 * 1000,
};

static const struct {
	uint64_t mount_flag; /* MS_*, the language of plans */
	uint64_t attribute;  /* MOUNT_ATTR_*, the language of mount_setattr(2) */
} attributes[] = {
	{MS_RDONLY, MOUNT_ATTR_RDONLY}, {MS_NOSUID, MOUNT_ATTR_NOSUID},		{MS_NODEV, MOUNT_ATTR_NODEV},
	{MS_NOEXEC, MOUNT_ATTR_NOEXEC}, {MS_NODIRATIME, MOUNT_ATTR_NODIRATIME}, {MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW},
};

struct mount_request {
	const char *source;
	const char *target;
	const char *type;
	const char *data;
	unsigned long flags;
	mode_t mode;  /* of the target, if it has to be made */
	uint64_t how; /* WIRE_MOUNT_* */
};

static int set_attributes(int fd, bool recursive, struct mount_attr *attr)
{
	return check(mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0U), attr, sizeof(*attr)));
}

static int mount_here(int target, const char *source, const char *type, unsigned long flags, const char *data)
{
	int error = check(fchdir(target));

	if (!error)
		error = check(mount(source, ".", type, flags, data));
	/* Not to stay in there: the target may have to be unmounted, and CHDIR is what sets the container's cwd. */
	return check(chdir("/")) ? -errno : error;
}

/* The error of a mount whose device the kernel has not found, yet; 0 if the request names none. */
static int device_missing(const struct mount_request *request)
{
	if (strncmp(request->source, "/dev/", strlen("/dev/")) == 0)
		return -ENOENT;
	return strcmp(request->type, "virtiofs") == 0 ? -EINVAL : 0;
}

/* The guest's own devices, which its kernel may still be looking at when it has only just booted, or got them. */
static int mount_device_here(int target, const struct mount_request *request, const char *data)
{
	struct timespec pause = {.tv_nsec = DEVICE_PAUSE_NS};
	int missing = device_missing(request), error = missing;

	for (int tries = 0; tries < DEVICE_TRIES && (error == missing || error == -ENXIO); tries++) {
		if (tries)
			nanosleep(&pause, NULL);
		error = mount_here(target, request->source, request->type, request->flags, data);
	}
	return error;
}

/* As runc: a tmpfs over a directory that is there gets its mode, unless the options name another (the last one counts). */
static char *tmpfs_data(int target, const char *data)
{
	struct stat status;
	char *with_mode;

	if (fstat(target, &status) < 0 || asprintf(&with_mode, "mode=%04o%s%s", status.st_mode & 07777, *data ? "," : "", data) < 0)
		return NULL;
	return with_mode;
}

/* Mounts on the directory `fd`, and fills the new file system from it. A read-only one becomes so when it is filled. */
static int mount_copied_up(struct plan_context *context, const struct mount_request *request, int fd, const char *data)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	int error = mount_here(fd, request->source, request->type, request->flags & ~(unsigned long)MS_RDONLY, data);

	if (error)
		return error;
	cleanup_close int top = path_open(context, request->target, O_PATH | O_DIRECTORY);
	if (top < 0)
		return top;
	error = copy_up(fd, top);
	return error || !(request->flags & MS_RDONLY) ? error : set_attributes(top, false, &read_only);
}

/* An image could have /proc lead into a directory that others write to, and be looked at there by whoever trusts procfs. */
static int target_is_directory(struct plan_context *context, const struct mount_request *request)
{
	struct stat status;
	cleanup_close int fd = path_open(context, request->target, O_PATH | O_NOFOLLOW);

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	if (fstat(fd, &status) < 0)
		return -errno;
	if (S_ISDIR(status.st_mode))
		return 0;
	snprintf(context->detail, sizeof(context->detail), "filesystem \"%.20s\" must be mounted on ordinary directory", request->type);
	return -ENOTDIR;
}

static int mount_request(struct plan_context *context, const struct mount_request *request)
{
	int refused = request->how & WIRE_MOUNT_NO_LINK ? target_is_directory(context, request) : 0;
	bool made;

	if (refused)
		return refused;
	cleanup_free char *with_mode = NULL;
	cleanup_close int fd = path_make_directory(context, request->target, request->mode, &made);
	const char *data = request->data;

	if (fd < 0)
		return fd;
	if (!made && context->root >= 0 && strcmp(request->type, "tmpfs") == 0) {
		data = with_mode = tmpfs_data(fd, data);
		if (!data)
			return -errno;
	}
	if ((request->how & WIRE_MOUNT_COPY_UP) && !made)
		return mount_copied_up(context, request, fd, data);
	data = *data ? data : NULL;
	if (context->root < 0 && device_missing(request))
		return mount_device_here(fd, request, data);
	return mount_here(fd, request->source, request->type, request->flags, data);
}

int op_mount(struct plan_context *context, struct plan_arguments *arguments)
{
	struct mount_request request;

	request.source = next_string(arguments);
	request.target = next_string(arguments);
	request.type = next_string(arguments);
	request.flags = next_number(arguments);
	request.data = next_string(arguments);
	request.mode = (mode_t)next_number(arguments);
	request.how = next_number(arguments);
	return mount_request(context, &request);
}

/* What mount(2) says of a directory on a file, or the reverse; move_mount(2) says EINVAL, which tells nothing. */
static int same_kind(int mount, int target)
{
	struct stat from, to;

	if (fstat(mount, &from) < 0 || fstat(target, &to) < 0)
		return -errno;
	return S_ISDIR(from.st_mode) == S_ISDIR(to.st_mode) ? 0 : -ENOTDIR;
}

int op_bind(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *source = next_string(arguments);
	const char *target = next_string(arguments);
	bool recursive = next_number(arguments) != 0;
	bool is_file = next_number(arguments) != 0;
	bool made;
	cleanup_close int mount = copy_mount(AT_FDCWD, source, recursive ? AT_RECURSIVE : 0);

	if (mount < 0)
		return mount;
	cleanup_close int fd = is_file ? path_make_file(context, target) : path_make_directory(context, target, 0755, &made);
	if (fd < 0)
		return fd;
	int error = same_kind(mount, fd);
	return error ? error : place_mount(mount, fd);
}

/* MOUNT_ATTR_* for what does not concern the access time; -EINVAL for flags that mean nothing here. */
static int plain_attributes(uint64_t flags, uint64_t *attribute)
{
	flags &= ~(uint64_t)(SUPERBLOCK_FLAGS | ATIME_FLAGS);
	for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++) {
		if (flags & attributes[i].mount_flag)
			*attribute |= attributes[i].attribute;
		flags &= ~attributes[i].mount_flag;
	}
	return flags ? -EINVAL : 0;
}

/* The access time is one field of three values: to set any of them, or to clear one, all of it is cleared. */
static void atime_attributes(uint64_t set, uint64_t clear, struct mount_attr *attr)
{
	if (!((set | clear) & ATIME_FLAGS))
		return;
	attr->attr_clr |= MOUNT_ATTR__ATIME;
	if (set & MS_NOATIME)
		attr->attr_set |= MOUNT_ATTR_NOATIME;
	else if ((set & MS_STRICTATIME) || ((clear & MS_RELATIME) && !(set & MS_RELATIME)))
		attr->attr_set |= MOUNT_ATTR_STRICTATIME;
}

int op_remount(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *target = next_string(arguments);
	uint64_t set = next_number(arguments);
	uint64_t clear = next_number(arguments);
	bool recursive = next_number(arguments) != 0;
	uint64_t attr_set = 0, attr_clr = 0;
	int error = plain_attributes(set, &attr_set);

	if (!error)
		error = plain_attributes(clear, &attr_clr);
	if (error)
		return error;
	struct mount_attr attr = {.attr_set = attr_set, .attr_clr = attr_clr};
	atime_attributes(set, clear, &attr);
	cleanup_close int fd = path_open(context, target, O_PATH);
	return fd < 0 ? fd : set_attributes(fd, recursive, &attr);
}

static int set_propagation(int fd, uint64_t flags)
{
	struct mount_attr attr = {.propagation = flags & ~(uint64_t)MS_REC};

	return set_attributes(fd, (flags & MS_REC) != 0, &attr);
}

int op_propagation(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *target = next_string(arguments);
	uint64_t flags = next_number(arguments);
	cleanup_close int fd = path_open(context, target, O_PATH);

	return fd < 0 ? fd : set_propagation(fd, flags);
}

int op_root(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	close_fd(&context->root);
	context->root = fd;
	return 0;
}

/* The old root ends up on top of the new one, and is detached from there: no directory for it is needed. */
static int swap_roots(int root)
{
	int error = check(fchdir(root));

	if (!error)
		error = check(syscall(SYS_pivot_root, ".", "."));
	if (!error)
		error = check(umount2(".", MNT_DETACH));
	return error ? error : check(chdir("/"));
}

int op_pivot(struct plan_context *context, struct plan_arguments *arguments)
{
	uint64_t propagation = next_number(arguments);
	int error = context->root < 0 ? -EINVAL : hold_null_mount(context);

	if (!error)
		error = swap_roots(context->root);
	if (error)
		return error;
	close_fd(&context->root);
	context->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (context->root < 0)
		return -errno;
	return propagation ? set_propagation(context->root, propagation) : 0;
}
