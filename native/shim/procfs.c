/* A procfs shows processes by the rights of whoever opens its files, and who serves a guest's files is root. So none that a guest sees has processes. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "shim.h"

enum { CHUNK = 4096 };

/* One line of mountinfo, of a procfs: its number, what of the file system is mounted, and where. */
struct procfs {
	unsigned long long number;
	char *root, *target;
};

/* In a child: an open, detached mount. */
static int mount_proc(unsigned int attributes)
{
	cleanup_close int context = (int)syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC);
	int mount;

	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	mount = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
	return mount < 0 ? -errno : mount;
}

/* A procfs is that of a PID namespace, for good. The namespace of one whose first process has ended gets no other: all that there is then is
 * the files that are nobody's. */
static int proc_without_processes(unsigned int attributes)
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
		mount = mount_proc(attributes);
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

/* For a single file of a process: a device, which nobody but the guest's own kernel opens. */
static int nothing(void)
{
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY, .propagation = MS_PRIVATE};

	if (tree < 0)
		return -errno;
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) < 0) {
		close(tree);
		return -errno;
	}
	return tree;
}

static int cover(int directory)
{
	unsigned int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	cleanup_close int lid = -1;
	struct statvfs flags;
	struct stat status;

	if (fstatvfs(directory, &flags) < 0 || fstat(directory, &status) < 0)
		return -errno;
	if (flags.f_flag & ST_RDONLY)
		attributes |= MOUNT_ATTR_RDONLY;
	lid = S_ISDIR(status.st_mode) ? proc_without_processes(attributes) : nothing();
	if (lid < 0)
		return lid;
	if (syscall(SYS_move_mount, lid, "", directory, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

/* The whole of it, or a process of it; not /sys, or a single file as lxcfs replaces them. */
static bool shows_processes(const char *root)
{
	return strcmp(root, "/") == 0 || isdigit((unsigned char)root[1]) || strncmp(root, "/self", 5) == 0 ||
	       strncmp(root, "/thread-self", 12) == 0;
}

/* -ENOENT if one does not get there: something else is mounted over it, or over a directory above it. */
static int open_mount(const struct procfs *found)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	cleanup_close int fd = (int)syscall(SYS_openat2, AT_FDCWD, found->target, &how, sizeof(how));
	struct statx status;

	if (fd < 0)
		return errno == ENOTDIR || errno == ELOOP ? -ENOENT : -errno;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &status) < 0)
		return -errno;
	if (!(status.stx_mask & STATX_MNT_ID))
		return -ENOSYS;
	return status.stx_mnt_id == found->number ? take_fd(&fd) : -ENOENT;
}

/* Octal escapes undone, in place. */
static void unescape(char *text)
{
	char *to = text;

	for (; *text; text++) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*to++ = *text;
		}
	}
	*to = '\0';
}

/* NUMBER PARENT DEVICE ROOT TARGET OPTIONS [TAGS] - TYPE ... (proc_pid_mountinfo(5)) */
static bool parse(char *line, struct procfs *found)
{
	const char *type = strstr(line, " - ");

	if (!type || strncmp(type, " - proc ", 8) != 0)
		return false;
	found->number = strtoull(line, NULL, 10);
	for (int field = 0; field < 3; field++)
		(void)strsep(&line, " ");
	found->root = strsep(&line, " ");
	found->target = strsep(&line, " ");
	if (!found->root || !found->target)
		return false;
	unescape(found->root);
	unescape(found->target);
	return true;
}

static bool is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static int hide(const struct procfs *found)
{
	cleanup_close int directory = open_mount(found);

	if (directory == -ENOENT)
		return 0;
	return directory < 0 ? directory : cover(directory);
}

/* Whole, before anything is mounted: our own would be found in it. */
static int read_table(char **table)
{
	cleanup_close int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	size_t size = 0, room = 0;
	ssize_t got;

	if (fd < 0)
		return -errno;
	do {
		if (room - size < CHUNK) {
			char *grown = realloc(*table, room += 4 * CHUNK);

			if (!grown)
				return -ENOMEM;
			*table = grown;
		}
		got = read(fd, *table + size, CHUNK - 1);
		if (got < 0)
			return -errno;
		size += (size_t)got;
	} while (got > 0);
	(*table)[size] = '\0';
	return 0;
}

int procfs_hide(const char *path)
{
	cleanup_free char *table = NULL;
	struct procfs found;
	int error = read_table(&table);
	char *rest = table, *line;

	while (!error && (line = strsep(&rest, "\n")))
		if (parse(line, &found) && is_below(found.target, path) && shows_processes(found.root))
			error = hide(&found);
	return error;
}
