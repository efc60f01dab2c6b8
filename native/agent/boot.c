/* Boot: the initramfs holds this program and the kernel's modules, nothing else.
 *
 * The root moves from the initramfs to a tmpfs, because pivot_root(2) cannot leave an initramfs, and what was in it is
 * deleted: it would be in every clone's memory. */
#include "boot.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "cgroup.h"
#include "cleanup.h"
#include "log.h"
#include "plan.h"

#define NEW_ROOT "/root.new"
#define PORTS "/sys/class/virtio-ports"
#define PORT_NAME "rundctl.agent\n"

enum {
	PORT_TRIES = 15000, /* times PORT_PAUSE_NS: the host announces the port when its driver asks, soon after */
	PORT_PAUSE_NS = 2 * 1000 * 1000,
};

static const struct {
	const char *source, *target, *type;
	unsigned long flags;
} kernel_mounts[] = {
	{"tmpfs", NEW_ROOT, "tmpfs", MS_NODEV},
	{"devtmpfs", NEW_ROOT "/dev", "devtmpfs", MS_NOSUID},
	{"proc", NEW_ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC},
	{"sysfs", NEW_ROOT "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

static int mount_kernel_file_systems(void)
{
	for (size_t i = 0; i < sizeof(kernel_mounts) / sizeof(*kernel_mounts); i++) {
		const char *data = i == 0 ? "mode=0755" : NULL;
		if (mkdir(kernel_mounts[i].target, 0755) < 0 && errno != EEXIST)
			return -errno;
		if (mount(kernel_mounts[i].source, kernel_mounts[i].target, kernel_mounts[i].type, kernel_mounts[i].flags, data) < 0)
			return -errno;
	}
	return 0;
}

/* The kernel opens a console for init only if the initramfs has the device; the first three must be taken in any case. */
static int open_standard_descriptors(const char *null)
{
	int fd = open(null, O_RDWR);

	while (fd >= 0 && fd <= STDERR_FILENO)
		fd = dup(fd);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int only_modules(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name);

	return length > 3 && strcmp(entry->d_name + length - 3, ".ko") == 0;
}

static int load_module(const char *name)
{
	char path[sizeof("/modules/") + NAME_MAX];

	snprintf(path, sizeof(path), "/modules/%s", name);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, "", 0) == 0 || errno == EEXIST)
		return 0;
	int error = -errno;
	log_error(name, -error);
	return error;
}

/* In the order of their names, which whoever made the initramfs chose. No directory: everything is built in. */
static int load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, only_modules, alphasort);
	int error = 0;

	if (count < 0)
		return errno == ENOENT ? 0 : -errno;
	for (int i = 0; i < count; i++) {
		if (!error)
			error = load_module(names[i]->d_name);
		free(names[i]);
	}
	free(names);
	return error;
}

/* Deletes what is in a directory of the initramfs, but not what is mounted there. Errors leave a file, that is all. */
static void delete_below(int directory, dev_t device)
{
	DIR *entries = fdopendir(directory);
	struct dirent *entry;
	struct stat status;

	while (entries && (entry = readdir(entries))) {
		const char *name = entry->d_name;
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
			continue;
		if (S_ISDIR(status.st_mode))
			delete_below(openat(directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), device);
		unlinkat(directory, name, S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
	}
	if (entries)
		closedir(entries);
}

static int leave_initramfs(void)
{
	struct stat status;
	int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (old < 0 || fstat(old, &status) < 0)
		return -errno;
	delete_below(old, status.st_dev);
	if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

static bool is_agent_port(const char *port)
{
	char path[sizeof(PORTS "//name") + NAME_MAX], name[sizeof(PORT_NAME)];

	snprintf(path, sizeof(path), PORTS "/%s/name", port);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && read(fd, name, sizeof(name)) == sizeof(PORT_NAME) - 1 && memcmp(name, PORT_NAME, sizeof(PORT_NAME) - 1) == 0;
}

static int open_named_port(void)
{
	cleanup_closedir DIR *ports = opendir(PORTS);
	struct dirent *entry;

	while (ports && (entry = readdir(ports))) {
		char path[sizeof("/dev/") + NAME_MAX];
		if (entry->d_name[0] == '.' || !is_agent_port(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
		return fd < 0 ? -errno : fd;
	}
	return -ENOENT;
}

/* sysfs has no event to wait for; this loop is over before the snapshot, so no clone ever runs it. */
static int open_port(void)
{
	struct timespec pause = {.tv_nsec = PORT_PAUSE_NS};
	int fd = open_named_port();

	for (int tries = 0; fd == -ENOENT && tries < PORT_TRIES; tries++) {
		nanosleep(&pause, NULL);
		fd = open_named_port();
	}
	return fd;
}

int boot(void)
{
	static const struct {
		const char *what;
		int (*step)(void);
	} steps[] = {
		{"mount the kernel's file systems", mount_kernel_file_systems},
		{"load the modules", load_modules},
		{"leave the initramfs", leave_initramfs},
		{"open the port rundctl.agent", open_port},
	};
	int result = 0;

	umask(0);
	for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		result = steps[i].step();
		if (i == 0 && result == 0) {
			result = open_standard_descriptors(NEW_ROOT "/dev/null");
			log_to_kernel();
		}
		if (result < 0) {
			log_error(steps[i].what, -result);
			return result;
		}
	}
	cgroup_enable();
	return result;
}

void power_off(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
