#include "cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "cleanup.h"

#define CGROUP_ROOT "/sys/fs/cgroup"

enum { NAME_SIZE = 8, DEPTH_MAX = 32, NO_CGROUP = -1 };
_Static_assert(NO_CGROUP == -EPERM, "an errno that cgroup_make never returns otherwise");

static bool enabled;

void cgroup_enable(void)
{
	enabled = true;
}

static int open_root(void)
{
	struct statfs status;

	if (!enabled || statfs(CGROUP_ROOT, &status) < 0 || status.f_type != CGROUP2_SUPER_MAGIC)
		return -1;
	return open(CGROUP_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void name_of(uint16_t container, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "c%u", container);
}

static bool is_child(int directory, const struct dirent *entry)
{
	struct stat status;

	if (entry->d_name[0] == '.')
		return false;
	return fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode);
}

/* Calls `visit` for every child cgroup, then for the cgroup itself. */
static void walk(int cgroup, unsigned depth, void (*visit)(int parent, const char *name, void *data), void *data)
{
	int duplicate = openat(cgroup, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_closedir DIR *directory = duplicate < 0 ? NULL : fdopendir(duplicate);
	struct dirent *entry;

	while (directory && depth < DEPTH_MAX && (entry = readdir(directory))) {
		if (!is_child(cgroup, entry))
			continue;
		cleanup_close int child = openat(cgroup, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (child >= 0)
			walk(child, depth + 1, visit, data);
		visit(cgroup, entry->d_name, data);
	}
}

static void remove_child(int parent, const char *name, void *data)
{
	(void)data;
	unlinkat(parent, name, AT_REMOVEDIR);
}

static void kill_all(int cgroup)
{
	cleanup_close int fd = openat(cgroup, "cgroup.kill", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "1", 1) < 0)
		return; /* an empty cgroup being removed: nothing to kill */
}

static void remove_named(int root, const char *name, int cgroup)
{
	kill_all(cgroup);
	walk(cgroup, 0, remove_child, NULL);
	unlinkat(root, name, AT_REMOVEDIR);
}

int cgroup_make(uint16_t container)
{
	char name[NAME_SIZE];
	cleanup_close int root = open_root();

	if (root < 0)
		return NO_CGROUP;
	name_of(container, name);
	if (mkdirat(root, name, 0755) < 0 && errno != EEXIST)
		return errno == EPERM ? -EACCES : -errno;
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -ENOENT : fd;
}

void cgroup_remove(uint16_t container, int cgroup)
{
	char name[NAME_SIZE];
	cleanup_close int root = open_root();

	if (root < 0 || cgroup < 0)
		return;
	name_of(container, name);
	remove_named(root, name, cgroup);
}

bool cgroup_saw_oom_kill(int cgroup)
{
	int fd = openat(cgroup, "memory.events", O_RDONLY | O_CLOEXEC);
	FILE *events = fd < 0 ? NULL : fdopen(fd, "re");
	char name[32];
	unsigned long long count, kills = 0;

	while (events && fscanf(events, "%31s %llu", name, &count) == 2)
		if (strcmp(name, "oom_kill") == 0)
			kills = count;
	if (events)
		fclose(events);
	else
		close_fd(&fd);
	return kills > 0;
}

struct delivery {
	int signal;
	int error; /* -ESRCH until a process got it */
};

static void signal_members(int cgroup, struct delivery *delivery)
{
	int fd = openat(cgroup, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *members = fd < 0 ? NULL : fdopen(fd, "re");
	long pid;

	while (members && fscanf(members, "%ld", &pid) == 1)
		if (pid > 0 && kill((pid_t)pid, delivery->signal) == 0)
			delivery->error = 0;
	if (members)
		fclose(members);
	else
		close_fd(&fd);
}

static void signal_child(int parent, const char *name, void *data)
{
	cleanup_close int child = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (child >= 0)
		signal_members(child, data);
}

int cgroup_signal(int cgroup, int signal)
{
	struct delivery delivery = {.signal = signal, .error = -ESRCH};

	if (signal == SIGKILL) {
		kill_all(cgroup); /* also catches what forks meanwhile */
		return 0;
	}
	walk(cgroup, 0, signal_child, &delivery);
	signal_members(cgroup, &delivery);
	return delivery.error;
}
