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

enum { CHUNK = 4096, ROUNDS = 32 };

/* One line of mountinfo: its number, what it is mounted in, what of the file system is mounted, and where. */
struct mounted {
	unsigned long long number, parent;
	char *root, *target;
	bool has_processes; /* of a procfs: the whole of it, or a process of it; not /sys, or a single file as lxcfs replaces them */
	bool is_whole;	    /* with all that a procfs has beside them */
};

/* What is mounted at a path or below, and which of it is our own. */
struct table {
	char *text;
	struct mounted *mounts;
	size_t count;
	unsigned long long *lids;
	size_t lid_count;
};

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

static int lay(int mount, int place)
{
	if (syscall(SYS_move_mount, mount, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

/* A mount's number, 0 if it cannot be told. */
static unsigned long long number_of(int fd)
{
	struct statx status;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &status) < 0)
		return 0;
	return status.stx_mask & STATX_MNT_ID ? status.stx_mnt_id : 0;
}

/* Lays something on the root of a procfs, or on a process's directory or file: the mount of that. */
static int cover(int place, bool is_whole)
{
	unsigned int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	cleanup_close int lid = -1;
	struct statvfs flags;
	struct stat status;
	int error;

	if (fstatvfs(place, &flags) < 0 || fstat(place, &status) < 0)
		return -errno;
	if (flags.f_flag & ST_RDONLY)
		attributes |= MOUNT_ATTR_RDONLY;
	if (!S_ISDIR(status.st_mode))
		lid = nothing();
	else if (is_whole)
		lid = proc_without_processes(attributes);
	else
		lid = mount_new("tmpfs", attributes | MOUNT_ATTR_RDONLY);
	if (lid < 0)
		return lid;
	error = lay(lid, place);
	return error ? error : take_fd(&lid);
}

static bool shows_processes(const char *root)
{
	return strcmp(root, "/") == 0 || isdigit((unsigned char)root[1]) || strncmp(root, "/self", 5) == 0 ||
	       strncmp(root, "/thread-self", 12) == 0;
}

/* -ENOENT if there is nothing, or no mount may be there: a link, or something that is no directory above it. */
static int open_place(int directory, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	int fd = (int)syscall(SYS_openat2, directory, path, &how, sizeof(how));

	if (fd < 0)
		return errno == ENOTDIR || errno == ELOOP ? -ENOENT : -errno;
	return fd;
}

/* -ENOENT if one does not get there: something is mounted over a directory above it, or one was renamed since the table was read. */
static int open_mount(const struct mounted *mounted)
{
	cleanup_close int fd = open_place(AT_FDCWD, mounted->target);

	if (fd < 0)
		return fd;
	return number_of(fd) == mounted->number ? take_fd(&fd) : -ENOENT;
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
	mounted->number = strtoull(strsep(&line, " "), NULL, 10);
	mounted->parent = line ? strtoull(line, NULL, 10) : 0;
	for (int field = 0; field < 2; field++)
		(void)strsep(&line, " ");
	mounted->root = strsep(&line, " ");
	mounted->target = strsep(&line, " ");
	if (!mounted->root || !mounted->target)
		return false;
	unescape(mounted->root);
	unescape(mounted->target);
	/* That of a process that has ended is "//deleted", and shows nothing. */
	mounted->has_processes = is_proc && shows_processes(mounted->root) && !strstr(mounted->root, "//deleted");
	mounted->is_whole = mounted->is_whole && strcmp(mounted->root, "/") == 0;
	return true;
}

static bool is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

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

static int read_table(struct table *table, const char *path)
{
	struct mounted mounted;
	char *rest, *line;
	int error;

	free(table->text);
	table->text = NULL;
	table->count = 0;
	error = read_text(&table->text);
	rest = table->text;
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

static const struct mounted *find(const struct table *table, unsigned long long number)
{
	for (size_t i = 0; i < table->count; i++)
		if (table->mounts[i].number == number)
			return &table->mounts[i];
	return NULL;
}

/* What lies over its root, which nobody can rename: ours, or what was mounted there already. */
static const struct mounted *cover_of(const struct table *table, const struct mounted *mounted)
{
	for (size_t i = 0; i < table->count; i++)
		if (table->mounts[i].parent == mounted->number && strcmp(table->mounts[i].target, mounted->target) == 0)
			return &table->mounts[i];
	return NULL;
}

static bool is_lid(const struct table *table, const struct mounted *mounted)
{
	for (size_t i = 0; i < table->lid_count; i++)
		if (table->lids[i] == mounted->number)
			return true;
	return false;
}

/* For good: its own root is covered, or that of one that it is mounted in. */
static bool is_out_of_reach(const struct table *table, const struct mounted *mounted)
{
	const struct mounted *parent, *cover;

	if (cover_of(table, mounted))
		return true;
	for (; (parent = find(table, mounted->parent)); mounted = parent) {
		cover = cover_of(table, parent);
		if (cover && cover != mounted)
			return true;
	}
	return false;
}

static int remember(struct table *table, int lid)
{
	unsigned long long *grown = realloc(table->lids, (table->lid_count + 1) * sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	table->lids = grown;
	table->lids[table->lid_count] = number_of(lid);
	return table->lids[table->lid_count++] ? 0 : -ENOSYS;
}

/* The path of a mount from the root of the procfs that it is mounted in; NULL if it is not, or a directory above was renamed between two lines. */
static const char *inside(const struct mounted *mounted, const struct mounted *procfs)
{
	size_t length = strlen(procfs->target);

	if (mounted->parent != procfs->number || !is_below(mounted->target, procfs->target) || !mounted->target[length])
		return NULL;
	return mounted->target + length + 1;
}

/* With what is mounted inside of it. A procfs among that is covered in the next round. */
static int lay_again(int from, int to, const char *path)
{
	cleanup_close int mount = open_place(from, path), place = -1, copy = -1;

	if (mount < 0)
		return mount == -ENOENT ? 0 : mount;
	place = open_place(to, path);
	if (place < 0)
		return place == -ENOENT ? 0 : place; /* nothing is there that could be seen */
	copy = (int)syscall(SYS_open_tree, mount, "",
			    AT_EMPTY_PATH | AT_RECURSIVE | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	return copy < 0 ? -errno : lay(copy, place);
}

static bool is_readable(const struct table *table, const struct mounted *procfs)
{
	for (size_t i = 0; i < table->count; i++)
		if (table->mounts[i].parent == procfs->number && !inside(&table->mounts[i], procfs))
			return false;
	return true;
}

/* 0 also if it could not be reached, which the next round sees. */
static int hide(struct table *table, const struct mounted *procfs)
{
	cleanup_close int place = is_readable(table, procfs) ? open_mount(procfs) : -ENOENT, lid = -1;
	int error;

	if (place < 0)
		return place == -ENOENT ? 0 : place;
	lid = cover(place, procfs->is_whole);
	if (lid < 0)
		return lid == -ENOENT ? 0 : lid; /* the process has ended */
	error = remember(table, lid);
	for (size_t i = 0; i < table->count && !error && procfs->is_whole; i++) {
		const char *path = inside(&table->mounts[i], procfs);

		if (path)
			error = lay_again(place, lid, path);
	}
	return error;
}

static int hide_all(struct table *table, size_t *left)
{
	int error = 0;

	*left = 0;
	for (size_t i = 0; !error && i < table->count; i++) {
		const struct mounted *mounted = &table->mounts[i];

		if (!mounted->has_processes || is_lid(table, mounted) || is_out_of_reach(table, mounted))
			continue;
		(*left)++;
		error = hide(table, mounted);
	}
	return error;
}

/* Round by round, until one has nothing to do. One that is hidden by a mount over a directory above it is no exception: who can rename that
 * directory, by another way to the same file system, would bring it to light. */
int procfs_hide(const char *path)
{
	struct table table = {0};
	size_t left = 1;
	int error = 0;

	for (int round = 0; round < ROUNDS && left && !error; round++) {
		error = read_table(&table, path);
		if (!error)
			error = hide_all(&table, &left);
	}
	free(table.lids);
	free(table.mounts);
	free(table.text);
	return !error && left ? -EBUSY : error;
}
