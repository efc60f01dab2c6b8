/* Operations that make or fill files. The child's umask is 0 until UMASK, so modes are exact. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "cleanup.h"
#include "path.h"
#include "plan.h"

static int own_directory(int fd, mode_t mode, uid_t uid, gid_t gid)
{
	if ((uid || gid) && fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0)
		return -errno;
	if (!(mode & (S_ISUID | S_ISGID)))
		return 0;
	/* mkdir(2) drops these two bits, and so does chown(2). */
	cleanup_close int opened = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return opened < 0 ? -errno : check(fchmod(opened, mode));
}

int op_mkdir(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	mode_t mode = (mode_t)next_number(arguments);
	uid_t uid = (uid_t)next_number(arguments);
	gid_t gid = (gid_t)next_number(arguments);
	bool made;
	cleanup_close int fd = path_make_directory(context, path, mode, &made);

	if (fd < 0)
		return fd;
	return made ? own_directory(fd, mode, uid, gid) : 0;
}

/* 0 if what is there is such a node already. */
static int same_node(int parent, const char *name, mode_t mode, dev_t device)
{
	struct stat status;

	if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if ((status.st_mode & S_IFMT) != (mode & S_IFMT))
		return -EEXIST;
	bool is_device = S_ISCHR(mode) || S_ISBLK(mode);
	return is_device && status.st_rdev != device ? -EEXIST : 0;
}

int op_mknod(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	mode_t mode = (mode_t)next_number(arguments);
	unsigned major = (unsigned)next_number(arguments);
	unsigned minor = (unsigned)next_number(arguments);
	uid_t uid = (uid_t)next_number(arguments);
	gid_t gid = (gid_t)next_number(arguments);
	char name[NAME_MAX + 1];
	cleanup_close int parent = path_make_parent(context, path, name);

	if (parent < 0)
		return parent;
	if (mknodat(parent, name, mode, makedev(major, minor)) < 0)
		return errno == EEXIST ? same_node(parent, name, mode, makedev(major, minor)) : -errno;
	return uid || gid ? check(fchownat(parent, name, uid, gid, AT_SYMLINK_NOFOLLOW)) : 0;
}

int op_symlink(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	const char *text = next_string(arguments);
	char name[NAME_MAX + 1];
	cleanup_close int parent = path_make_parent(context, path, name);

	if (parent < 0)
		return parent;
	return symlinkat(text, parent, name) < 0 && errno != EEXIST ? -errno : 0;
}

/* One write(2), because sysctl and cgroup files take every write as a whole value. */
static int write_once(int fd, const char *text)
{
	size_t length = strlen(text);
	ssize_t written = write(fd, text, length);

	if (written < 0)
		return -errno;
	return (size_t)written == length ? 0 : -EIO;
}

int op_write(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	const char *text = next_string(arguments);
	cleanup_close int fd = path_open(context, path, O_WRONLY | O_NOCTTY | O_NONBLOCK);
	struct stat status;

	if (fd < 0)
		return fd;
	if (fstat(fd, &status) < 0)
		return -errno;
	/* procfs, sysfs and cgroupfs have regular files only; below ROOT anything else is the image's doing. */
	return context->root >= 0 && !S_ISREG(status.st_mode) ? -EINVAL : write_once(fd, text);
}

/* machine-id(5): an image that wants one made at boot ships the file empty or with the word "uninitialized". */
static bool wants_machine_id(int fd)
{
	static const char word[] = "uninitialized\n";
	char text[sizeof(word)];
	struct stat status;

	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
		return false;
	ssize_t got = read(fd, text, sizeof(text));
	if (got < 0)
		return false;
	return got == 0 || ((size_t)got == sizeof(word) - 1 && memcmp(text, word, sizeof(word) - 1) == 0) ||
	       ((size_t)got == sizeof(word) - 2 && memcmp(text, word, sizeof(word) - 2) == 0);
}

int op_machine_id(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	const char *text = next_string(arguments);
	cleanup_close int present = path_open(context, path, O_RDONLY | O_NOCTTY | O_NONBLOCK);

	if (present < 0)
		return present == -ENOENT || present == -ENOTDIR ? 0 : present;
	if (!wants_machine_id(present))
		return 0;
	cleanup_close int fd = path_open(context, path, O_WRONLY | O_TRUNC);
	return fd < 0 ? fd : write_once(fd, text);
}
