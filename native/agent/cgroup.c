#include "cgroup.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "cgroup_walk.h"
#include "cleanup.h"
#include "clock.h"

#define CGROUP_ROOT "/sys/fs/cgroup"

enum {
	NAME_SIZE = 8,
	NO_CGROUP = -1,
	/* Together less than the ten seconds that a `kill` waits. */
	FREEZE_MS = 500,
	SIGNAL_MS = 1000,
	TURN_NS = 5000000,
	REMOVE_MS = 10000, /* nobody waits for it */
};
_Static_assert(NO_CGROUP == -EPERM, "an errno that cgroup_make never returns otherwise");

static bool enabled;

void cgroup_enable(void)
{
	enabled = true;
}

/* The errno of what has just failed, but never NO_CGROUP. */
static int failure(void)
{
	return errno == EPERM ? -EACCES : -errno;
}

static int open_root(void)
{
	struct statfs status;

	if (!enabled || statfs(CGROUP_ROOT, &status) < 0 || status.f_type != CGROUP2_SUPER_MAGIC)
		return NO_CGROUP;
	int fd = open(CGROUP_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? failure() : fd;
}

static void name_of(uint16_t container, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "c%u", container);
}

/* Writes to one of its files. What fails is what a cgroup on its way out, or a kernel without that file, does not do. */
static bool set(int cgroup, const char *name, const char *value)
{
	cleanup_close int fd = openat(cgroup, name, O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, value, strlen(value)) >= 0;
}

static void kill_all(int cgroup)
{
	set(cgroup, "cgroup.kill", "1");
}

static void remove_child(int parent, const char *name, void *data)
{
	(void)data;
	unlinkat(parent, name, AT_REMOVEDIR);
}

static void remove_named(int root, const char *name, int cgroup)
{
	const struct cgroup_visitor remover = {.leave = remove_child};

	kill_all(cgroup);
	cgroup_walk(cgroup, &remover, clock_ms(CLOCK_MONOTONIC) + REMOVE_MS);
	unlinkat(root, name, AT_REMOVEDIR);
}

int cgroup_make(uint16_t container)
{
	char name[NAME_SIZE];
	cleanup_close int root = open_root();

	if (root < 0)
		return root;
	name_of(container, name);
	if (mkdirat(root, name, 0755) < 0 && errno != EEXIST)
		return failure();
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? failure() : fd;
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

enum { PIDS = 1 << 22, /* PID_MAX_LIMIT of linux/threads.h */ BITS = 8 };

struct delivery {
	int signal;
	int error;	     /* -ESRCH until a process got it */
	unsigned char *sent; /* a bit a pid */
	bool anew;	     /* a process got it in this pass */
};

static bool is_sent(struct delivery *delivery, long pid)
{
	unsigned char *byte = &delivery->sent[pid / BITS], bit = (unsigned char)(1U << (pid % BITS));
	bool was = *byte & bit;

	*byte |= bit;
	return was;
}

static void signal_members(int cgroup, void *data)
{
	struct delivery *delivery = data;
	int fd = openat(cgroup, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *members = fd < 0 ? NULL : fdopen(fd, "re");
	long pid;

	while (members && fscanf(members, "%ld", &pid) == 1)
		if (pid > 0 && pid < PIDS && !is_sent(delivery, pid) && kill((pid_t)pid, delivery->signal) == 0) {
			delivery->error = 0;
			delivery->anew = true;
		}
	if (members)
		fclose(members);
	else
		close_fd(&fd);
}

/* Whether the file's text, which is short, has these words. */
static bool says(int fd, const char *words)
{
	char text[128];
	ssize_t got = pread(fd, text, sizeof(text) - 1, 0);

	text[got < 0 ? 0 : got] = '\0';
	return strstr(text, words) != NULL;
}

/* Stops all that is in the cgroup, for a walk that nothing forks or moves away from. What waits in the kernel for something
 * that does not come (a FUSE server's answer) cannot be stopped, and is not waited for longer than FREEZE_MS.
 * False: the container had frozen it itself, or it cannot be: it is not to be thawed. */
static bool freeze(int cgroup)
{
	cleanup_close int state = openat(cgroup, "cgroup.freeze", O_RDONLY | O_CLOEXEC);
	cleanup_close int events = openat(cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
	struct pollfd changed = {.fd = events, .events = POLLPRI};
	int64_t deadline = clock_ms(CLOCK_MONOTONIC) + FREEZE_MS, left = FREEZE_MS;

	if (state < 0 || says(state, "1") || !set(cgroup, "cgroup.freeze", "1"))
		return false;
	while (!says(events, "frozen 1") && left > 0 && poll(&changed, 1, (int)left) > 0)
		left = deadline - clock_ms(CLOCK_MONOTONIC);
	return true;
}

/* Seen on Linux 6.1, under load: the cgroup says that it is frozen, all that it lists has the signal, and after the thaw a process lives on that was not in
 * the list, a child of one that forks and exits. So all has a turn, still frozen, and the list is read again until nothing in it is new. */
static int signal_stopped(int cgroup, struct delivery *delivery)
{
	const struct cgroup_visitor sender = {.enter = signal_members, .data = delivery};
	const struct timespec turn = {.tv_nsec = TURN_NS};
	int64_t deadline = clock_ms(CLOCK_MONOTONIC) + SIGNAL_MS;
	int error;

	for (;;) {
		delivery->anew = false;
		signal_members(cgroup, delivery);
		error = cgroup_walk(cgroup, &sender, deadline);
		if (error || !delivery->anew)
			return error;
		if (clock_ms(CLOCK_MONOTONIC) > deadline) /* it could not be stopped, and forks faster than we look */
			return -ETIMEDOUT;
		nanosleep(&turn, NULL);
	}
}

int cgroup_signal(int cgroup, int signal)
{
	struct delivery delivery = {.signal = signal, .error = -ESRCH};

	if (signal == SIGKILL) {
		kill_all(cgroup); /* also catches what forks meanwhile */
		return 0;
	}
	delivery.sent = calloc(PIDS / BITS, 1);
	if (!delivery.sent)
		return -ENOMEM;
	bool frozen = freeze(cgroup);
	int error = signal_stopped(cgroup, &delivery);
	if (frozen)
		set(cgroup, "cgroup.freeze", "0");
	free(delivery.sent);
	return error ? error : delivery.error;
}
