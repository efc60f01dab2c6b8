#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "place.h"

/* Not recursive: what a user has mounted inside a rootfs, a procfs say, must not be reachable from here (docs/adr/0003: with a procfs in this
 * namespace an image's symlink once read a host file through `podman cp`). */
int root_enter(const struct options *options)
{
	cleanup_close int tree = mount_copy(options->rootfs, !options->rootfs_writable);

	if (tree < 0)
		return tree;
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	/* Anywhere will do as mount point: the old root is detached in a moment. */
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	if (fchdir(tree) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
		return -errno;
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}
