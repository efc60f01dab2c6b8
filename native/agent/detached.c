#include "detached.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { NULL_MAJOR = 1, NULL_MINOR = 3 };

int copy_mount(int directory, const char *path, unsigned flags)
{
	int fd = open_tree(directory, path, flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int place_mount(int mount, int target)
{
	return check(move_mount(mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
}

/* The container's /dev/null may be anything, so the guest's is kept as a detached mount from before PIVOT. */
int hold_null_mount(struct plan_context *context)
{
	struct stat status;

	if (context->null_mount < 0)
		context->null_mount = copy_mount(AT_FDCWD, "/dev/null", 0);
	if (context->null_mount < 0)
		return context->null_mount;
	if (fstat(context->null_mount, &status) < 0)
		return -errno;
	return S_ISCHR(status.st_mode) && status.st_rdev == makedev(NULL_MAJOR, NULL_MINOR) ? 0 : -ENODEV;
}
