/* QEMU: a child of the shim, in a mount namespace of its own in which the volumes are assembled. */
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
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

/* A tmpfs over the container's own directory, as only QEMU sees it: a place that is surely there. */
static int open_assembly(int state)
{
	char link[64], path[4096];
	ssize_t length;
	int directory;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", state);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		return -errno;
	path[length] = '\0';
	if (mount("volumes", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k") < 0)
		return -errno;
	directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return directory < 0 ? -errno : directory;
}

/* Copies of the sources' mounts, taken while this process is still in the host's namespace: later it may not. */
static int copy_volumes(const struct options *options, int *trees)
{
	for (size_t i = 0; i < options->volume_count; i++) {
		trees[i] = mount_copy(options->volumes[i].fd, options->volumes[i].recursive, options->volumes[i].read_only);
		if (trees[i] < 0)
			return trees[i];
	}
	return 0;
}

/* Slave of the host's namespace, so that this copy pins no mount that the host wants to be rid of. */
static int enter_namespace(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return -errno;
	/* Nor does a working directory: the caller's was the bundle. */
	if (chdir("/") < 0)
		return -errno;
	return 0;
}

static int assemble(const struct options *options)
{
	cleanup_free int *trees = calloc(options->volume_count, sizeof(*trees));
	cleanup_close int directory = -1;
	int error;

	if (!trees)
		return -ENOMEM;
	error = copy_volumes(options, trees);
	if (!error)
		error = enter_namespace();
	if (error)
		return error;
	directory = open_assembly(options->state);
	if (directory < 0)
		return directory;
	for (size_t i = 0; i < options->volume_count && !error; i++)
		error = place_volume(directory, i, &options->volumes[i], trees[i]);
	if (error)
		return error;
	return dup2(directory, options->volumes_fd) < 0 ? -errno : 0;
}

/* Everything but stdio, what QEMU was promised and the assembled volumes is closed by exec. */
static int inherit(const struct options *options)
{
	if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	for (size_t i = 0; i < options->keep_count; i++)
		if (fcntl(options->keep[i], F_SETFD, 0) < 0)
			return -errno;
	if (options->volume_count && fcntl(options->volumes_fd, F_SETFD, 0) < 0)
		return -errno;
	return 0;
}

static int quiet_stdio(int log)
{
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		return -errno;
	return 0;
}

static void run_qemu(const struct options *options) __attribute__((noreturn));
static void run_qemu(const struct options *options)
{
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigset_t none;
	int error = quiet_stdio(options->log);

	if (!error)
		error = options->volume_count ? assemble(options) : enter_namespace();
	if (!error)
		error = inherit(options);
	/* QEMU asks for huge pages for tables and buffers of which a clone uses a part. Inherited over exec; without it
	 * memory is lost, nothing else. */
	if (options->small_pages)
		(void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (!error) {
		sigaction(SIGPIPE, &standard, NULL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execv(options->qemu[0], options->qemu);
		error = -errno;
	}
	dprintf(2, "start %s: %s\n", options->qemu[0], strerror(-error));
	_exit(127);
}

pid_t vm_spawn(const struct options *options)
{
	pid_t pid = fork();

	if (pid == 0)
		run_qemu(options);
	return pid < 0 ? -errno : pid;
}
