/* MASK and READONLY: what an image may have is hidden or protected; what it does not have is skipped. */
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "detached.h"
#include "path.h"
#include "plan.h"

/* The held mount can be moved into the tree once; from its place there it can be copied. */
static int mask_file(struct plan_context *context, int target)
{
	int error = hold_null_mount(context);

	if (error)
		return error;
	if (!context->null_placed) {
		error = place_mount(context->null_mount, target);
		context->null_placed = !error;
		return error;
	}
	cleanup_close int copy = copy_mount(context->null_mount, "", AT_EMPTY_PATH);
	return copy < 0 ? copy : place_mount(copy, target);
}

static int mask_directory(int target)
{
	int error = check(fchdir(target));

	if (!error)
		error = check(mount("tmpfs", ".", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	return check(chdir("/")) ? -errno : error;
}

static bool is_missing(int error)
{
	return error == -ENOENT || error == -ENOTDIR;
}

int op_mask(struct plan_context *context, struct plan_arguments *arguments)
{
	struct stat status;
	cleanup_close int fd = path_open(context, next_string(arguments), O_PATH);

	if (fd < 0)
		return is_missing(fd) ? 0 : fd;
	if (fstat(fd, &status) < 0)
		return -errno;
	return S_ISDIR(status.st_mode) ? mask_directory(fd) : mask_file(context, fd);
}

/* What is mounted onto the root of all paths is seen by none of them: it is made read-only itself, without what is mounted below it, as by runc. */
static bool is_root(const struct plan_context *context, int fd)
{
	struct statx root, found;
	unsigned wanted = STATX_INO | STATX_MNT_ID;

	if (context->root < 0 || statx(context->root, "", AT_EMPTY_PATH, wanted, &root) < 0 || statx(fd, "", AT_EMPTY_PATH, wanted, &found) < 0)
		return false;
	return root.stx_mnt_id == found.stx_mnt_id && root.stx_ino == found.stx_ino;
}

int op_readonly(struct plan_context *context, struct plan_arguments *arguments)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
	cleanup_close int fd = path_open(context, next_string(arguments), O_PATH);

	if (fd < 0)
		return is_missing(fd) ? 0 : fd;
	if (is_root(context, fd))
		return check(mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
	cleanup_close int copy = copy_mount(fd, "", AT_EMPTY_PATH | AT_RECURSIVE);
	if (copy < 0)
		return copy;
	if (mount_setattr(copy, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0)
		return -errno;
	return place_mount(copy, fd);
}
