/* A procfs shows processes by the rights of whoever opens its files, and who serves a guest's files is root. So none that a guest sees has processes.
 * What lies over one must not show more than it did: what was mounted inside, which may be there to hide or to protect, is laid on it again. */
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

/* One line of mountinfo: its number, what of the file system is mounted, and where. */
struct mounted {
	unsigned long long number;
	char *root, *target;
	bool has_processes; /* of a procfs: the whole of it, or a process of it; not /sys, or a single file as lxcfs replaces them */
	bool is_whole;	    /* with all that a procfs has beside them */
};

struct table {
	char *text;
	struct mounted *mounts;
	size_t count;
};

static void table_free(struct table *table)
{
	free(table->mounts);
	free(table->text);
}

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
		mount = mount_new("proc", attributes);
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

/* Nothing can be laid on the directory of a process that has ended, and nothing is seen in it. */
static int lay(int mount, int directory)
{
	if (syscall(SYS_move_mount, mount, "", directory, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return errno == ENOENT ? 0 : -errno;
	return 0;
}

static int cover(int directory, bool is_whole)
{
	unsigned int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	cleanup_close int lid = -1;
	struct statvfs flags;
	struct stat status;

	if (fstatvfs(directory, &flags) < 0 || fstat(directory, &status) < 0)
		return -errno;
	if (flags.f_flag & ST_RDONLY)
		attributes |= MOUNT_ATTR_RDONLY;
	if (!S_ISDIR(status.st_mode))
		lid = nothing();
	else if (is_whole)
		lid = proc_without_processes(attributes);
	else
		lid = mount_new("tmpfs", attributes | MOUNT_ATTR_RDONLY);
	return lid < 0 ? lid : lay(lid, directory);
}

static bool shows_processes(const char *root)
{
	return strcmp(root, "/") == 0 || isdigit((unsigned char)root[1]) || strncmp(root, "/self", 5) == 0 ||
	       strncmp(root, "/thread-self", 12) == 0;
}

/* -ENOENT if there is nothing, or no mount may be there: a link, or something that is no directory above it. */
static int open_place(const char *target)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, target, &how, sizeof(how));

	if (fd < 0)
		return errno == ENOTDIR || errno == ELOOP ? -ENOENT : -errno;
	return fd;
}

/* -ENOENT if one does not get there: something else is mounted over it, or over a directory above it. */
static int open_mount(const struct mounted *mounted)
{
	cleanup_close int fd = open_place(mounted->target);
	struct statx status;

	if (fd < 0)
		return fd;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &status) < 0)
		return -errno;
	if (!(status.stx_mask & STATX_MNT_ID))
		return -ENOSYS;
	return status.stx_mnt_id == mounted->number ? take_fd(&fd) : -ENOENT;
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

/* NUMBER PARENT DEVICE ROOT TARGET OPTIONS [TAGS] - TYPE SOURCE OPTIONS (proc_pid_mountinfo(5)) */
static bool parse(char *line, struct mounted *mounted)
{
	char *type = strstr(line, " - ");
	bool is_proc;

	if (!type)
		return false;
	is_proc = strncmp(type, " - proc ", 8) == 0;
	mounted->is_whole = is_proc && !strstr(type, "subset=");
	mounted->number = strtoull(line, NULL, 10);
	for (int field = 0; field < 3; field++)
		(void)strsep(&line, " ");
	mounted->root = strsep(&line, " ");
	mounted->target = strsep(&line, " ");
	if (!mounted->root || !mounted->target)
		return false;
	unescape(mounted->root);
	unescape(mounted->target);
	mounted->has_processes = is_proc && shows_processes(mounted->root);
	mounted->is_whole = mounted->is_whole && strcmp(mounted->root, "/") == 0;
	return true;
}

static bool is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Whole, before anything is mounted: our own would be found in it. */
static int read_text(char **text)
{
	cleanup_close int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	size_t size = 0, room = 0;
	ssize_t got;

	if (fd < 0)
		return -errno;
	do {
		if (room - size < CHUNK) {
			char *grown = realloc(*text, room += 4 * CHUNK);

			if (!grown)
				return -ENOMEM;
			*text = grown;
		}
		got = read(fd, *text + size, CHUNK - 1);
		if (got < 0)
			return -errno;
		size += (size_t)got;
	} while (got > 0);
	(*text)[size] = '\0';
	return 0;
}

/* What is mounted at a path or below. */
static int read_table(struct table *table, const char *path)
{
	int error = read_text(&table->text);
	char *rest = table->text, *line;
	struct mounted mounted;

	while (!error && (line = strsep(&rest, "\n"))) {
		if (!parse(line, &mounted) || !is_below(mounted.target, path))
			continue;
		if (table->count % CHUNK == 0) {
			struct mounted *grown = realloc(table->mounts, (table->count + CHUNK) * sizeof(*grown));

			if (!grown)
				return -ENOMEM;
			table->mounts = grown;
		}
		table->mounts[table->count++] = mounted;
	}
	return error;
}

/* A mount without those inside of it, to be laid elsewhere; -1 for what one does not get to, or has processes. */
static int copy(const struct mounted *mounted, int *mount)
{
	cleanup_close int place = mounted->has_processes ? -ENOENT : open_mount(mounted);

	*mount = -1;
	if (place < 0)
		return place == -ENOENT ? 0 : place;
	*mount = (int)syscall(SYS_open_tree, place, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	return *mount < 0 ? -errno : 0;
}

static int lay_again(int mount, const char *target)
{
	cleanup_close int place = open_place(target);

	if (place < 0)
		return place == -ENOENT ? 0 : place;
	return lay(mount, place);
}

/* The table has parents before what is mounted inside of them. */
static int hide_whole(const struct table *table, const struct mounted *found, int directory)
{
	size_t inside = strlen(found->target);
	int *copies = calloc(table->count, sizeof(*copies));
	int error = copies ? 0 : -ENOMEM;
	size_t copied = 0;

	for (; !error && copied < table->count; copied++) {
		const struct mounted *other = &table->mounts[copied];

		copies[copied] = -1;
		if (is_below(other->target, found->target) && other->target[inside])
			error = copy(other, &copies[copied]);
	}
	if (!error)
		error = cover(directory, true);
	for (size_t i = 0; i < copied; i++) {
		if (copies[i] < 0)
			continue;
		if (!error)
			error = lay_again(copies[i], table->mounts[i].target);
		close(copies[i]);
	}
	free(copies);
	return error;
}

static int hide(const struct table *table, const struct mounted *found)
{
	cleanup_close int directory = open_mount(found);

	if (directory < 0)
		return directory == -ENOENT ? 0 : directory;
	return found->is_whole ? hide_whole(table, found, directory) : cover(directory, false);
}

int procfs_hide(const char *path)
{
	struct table table = {0};
	int error = read_table(&table, path);

	for (size_t i = 0; !error && i < table.count; i++)
		if (table.mounts[i].has_processes)
			error = hide(&table, &table.mounts[i]);
	table_free(&table);
	return error;
}
