/* A procfs shows processes by the rights of whoever opens its files, and who serves a guest's files is root. So none of the host's is shown, but in its place
 * one that has no processes: the lid. */
#include "procfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "place.h"

enum { HARMLESS = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC };

/* An open, detached mount of a new file system. */
static int mount_new(const char *type, unsigned int attributes)
{
	cleanup_close int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
	int mount;

	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	mount = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
	return mount < 0 ? -errno : mount;
}

/* A procfs is that of a PID namespace, for good. The namespace of one whose first process has ended gets no other: all that there is then is
 * the files that are nobody's. */
static int proc_without_processes(void)
{
	cleanup_close int slot = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_FILES, .exit_signal = SIGCHLD};
	int status, mount;
	pid_t pid;

	if (slot < 0)
		return -errno;
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		mount = mount_new("proc", HARMLESS);
		if (mount < 0)
			_exit(-mount);
		_exit(dup3(mount, slot, O_CLOEXEC) < 0 || close(mount) < 0 ? errno : 0);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
	return take_fd(&slot);
}

/* An empty directory, or a device, which nobody but the guest's own kernel opens. */
int mount_nothing(int place)
{
	cleanup_close int null = -1;
	struct statx status;

	/* What cannot be told, another user's FUSE, is mostly a directory. */
	if (statx(place, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) < 0 || S_ISDIR(status.stx_mode))
		return mount_new("tmpfs", HARMLESS | MOUNT_ATTR_RDONLY);
	null = open("/dev/null", O_PATH | O_CLOEXEC);
	return null < 0 ? -errno : mount_copy(null, true);
}

/* A lid that can be copied: attached. */
static int lid_open(const char *path)
{
	cleanup_close int lid = proc_without_processes();

	if (lid < 0)
		return lid;
	if (syscall(SYS_move_mount, lid, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	return take_fd(&lid);
}

/* What the lid has not, a process's, remains nothing. */
static int cover(struct piece *piece, int lid)
{
	cleanup_close int part = open_beneath(lid, piece->part);
	int tree;

	if (part < 0)
		return part == -ENOENT || part == -ELOOP || part == -ENOTDIR ? 0 : part;
	tree = mount_copy(part, piece->read_only);
	if (tree < 0)
		return tree;
	close_fd(&piece->tree);
	piece->tree = tree;
	return 0;
}

int procfs_cover(struct copy *copies, size_t count, const char *path)
{
	cleanup_close int lid = -1;
	int error = 0;

	for (size_t i = 0; i < count; i++) {
		for (size_t j = 0; j < copies[i].count && !error; j++) {
			if (!copies[i].pieces[j].part)
				continue;
			if (lid < 0 && (lid = lid_open(path)) < 0)
				return lid;
			error = cover(&copies[i].pieces[j], lid);
		}
	}
	return error;
}
