/* What QEMU, and a helper beside it, see of the host's files: a mount namespace of their own, and in it what they are to serve. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "shim.h"

/* Puts one source's copy under its number below the tmpfs. */
static int place_volume(int directory, size_t number, const struct volume *volume, int tree)
{
	cleanup_close int file = -1;
	char name[24];

	(void)snprintf(name, sizeof(name), "%zu", number);
	if (volume->is_file) {
		file = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (file < 0)
			return -errno;
	} else if (mkdirat(directory, name, 0700) < 0) {
		return -errno;
	}
	if (syscall(SYS_move_mount, tree, "", directory, name, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

/* The container's own directory: a place that is surely there, for what only this process is to see. */
static int find_place(int state, char path[PATH_MAX])
{
	char link[64];
	ssize_t length;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", state);
	length = readlink(link, path, PATH_MAX - 1);
	if (length < 0)
		return -errno;
	path[length] = '\0';
	return 0;
}

static int open_assembly(int state)
{
	char path[PATH_MAX];
	int directory, error = find_place(state, path);

	if (error)
		return error;
	if (mount("volumes", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k") < 0)
		return -errno;
	directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return directory < 0 ? -errno : directory;
}

/* Copies of the sources' mounts, taken while this process is still in the host's namespace: later it may not. Each in the place of its source's
 * descriptor, so that as many fit as could be opened. */
static int copy_volumes(const struct options *options, int *trees)
{
	for (size_t i = 0; i < options->volume_count; i++) {
		trees[i] = mount_copy(options->volumes[i].fd, options->volumes[i].recursive, options->volumes[i].read_only);
		if (trees[i] < 0)
			return trees[i];
		close(options->volumes[i].fd);
	}
	return 0;
}

/* Slave of the host's namespace, so that this copy pins no mount that the host wants to be rid of. */
int namespace_enter(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return -errno;
	/* Nor does a working directory: the caller's was the bundle. */
	if (chdir("/") < 0)
		return -errno;
	return 0;
}

/* No procfs can come in later: the copies are private, so nothing that the host mounts from now on appears in them. */
static int hide_processes(int state)
{
	char path[PATH_MAX];
	int error = find_place(state, path);

	return error ? error : procfs_hide(path);
}

static int place_volumes(const struct options *options, const int *trees)
{
	cleanup_close int directory = open_assembly(options->state);
	int error = directory < 0 ? directory : 0;

	for (size_t i = 0; i < options->volume_count && !error; i++)
		error = place_volume(directory, i, &options->volumes[i], trees[i]);
	if (!error)
		error = hide_processes(options->state);
	return error ? error : take_fd(&directory);
}

static int place_directory(const struct options *options, int tree)
{
	char path[PATH_MAX];
	int error = find_place(options->state, path);

	if (error)
		return error;
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	return procfs_hide(path);
}

int volumes_assemble(const struct options *options)
{
	cleanup_free int *trees = calloc(options->volume_count, sizeof(*trees));
	int error;

	if (!trees)
		return -ENOMEM;
	error = copy_volumes(options, trees);
	if (!error)
		error = namespace_enter();
	return error ? error : place_volumes(options, trees);
}

int directory_show(const struct options *options, int fd, bool read_only)
{
	cleanup_close int tree = mount_copy(fd, true, read_only);
	int error = tree < 0 ? tree : namespace_enter();

	return error ? error : place_directory(options, tree);
}

/* Leaves the descriptor open under that number alone. It may have it already: a source's, which is free by now. */
static int renumber(int *fd, int number)
{
	if (*fd < 0)
		return *fd;
	if (*fd != number)
		return dup2(*fd, number) < 0 ? -errno : 0;
	(void)take_fd(fd);
	return 0;
}

static int export_volumes(const struct options *options, const int *trees)
{
	cleanup_close int directory = place_volumes(options, trees);

	return renumber(&directory, options->volumes_fd);
}

static int export_directory(const struct options *options, int tree)
{
	cleanup_close int directory = -1;
	char path[PATH_MAX];
	int error = place_directory(options, tree);

	if (!error)
		error = find_place(options->state, path);
	if (error)
		return error;
	directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return directory < 0 ? -errno : renumber(&directory, options->exported);
}

int exports_assemble(const struct options *options)
{
	bool volumes = options->volumes_fd >= 0;
	cleanup_free int *trees = calloc(options->volume_count + 1, sizeof(*trees));
	cleanup_close int tree = -1;
	int error = trees ? 0 : -ENOMEM;

	/* Before the volumes', which free their sources' numbers: one of these is QEMU's for them all. */
	if (!error && options->exported >= 0)
		error = (tree = mount_copy(options->exported, true, options->exported_read_only)) < 0 ? tree : 0;
	if (!error && volumes)
		error = copy_volumes(options, trees);
	if (!error)
		error = namespace_enter();
	if (!error && volumes)
		error = export_volumes(options, trees);
	if (!error && tree >= 0)
		error = export_directory(options, tree);
	return error;
}
