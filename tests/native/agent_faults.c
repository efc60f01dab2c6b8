/* The agent linked with calls that fail or wait, by the word in FAULT (`-Wl,--wrap`): what no host does when a test asks for it. Three others are only
 * told, on stderr: what no test may do to its host. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

ssize_t __real_write(int fd, const void *bytes, size_t size);
ssize_t __wrap_write(int fd, const void *bytes, size_t size);
void __real_cgroup_remove(uint16_t container, int cgroup);
void __wrap_cgroup_remove(uint16_t container, int cgroup);
int __wrap_clock_settime(clockid_t clock, const struct timespec *now);
int __wrap_clock_adjtime(clockid_t clock, struct timex *change);
int __real_nanosleep(const struct timespec *wanted, struct timespec *left);
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left);
void __wrap_sync(void);

static bool fault(const char *name)
{
	const char *wanted = getenv("FAULT");

	return wanted && strcmp(wanted, name) == 0;
}

/* "memory": the channel takes no more than a page at once, as a virtio port whose kernel has its memory in pieces, and of those
 * every second one only. */
ssize_t __wrap_write(int fd, const void *bytes, size_t size)
{
	static unsigned pages;
	int type;
	socklen_t length = sizeof(type);

	if (fault("memory") && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && (size > 4096 || ++pages % 2)) {
		errno = ENOMEM;
		return -1;
	}
	return __real_write(fd, bytes, size);
}

/* "removal": as long as it takes, which is until SIGUSR1 comes. */
void __wrap_cgroup_remove(uint16_t container, int cgroup)
{
	sigset_t end;
	int number;

	sigemptyset(&end);
	sigaddset(&end, SIGUSR1);
	if (fault("removal"))
		sigwait(&end, &number);
	__real_cgroup_remove(container, cgroup);
}

int __wrap_clock_settime(clockid_t clock, const struct timespec *now)
{
	dprintf(2, "clock %d: %lld.%09ld\n", (int)clock, (long long)now->tv_sec, now->tv_nsec);
	return 0;
}

/* Where it would be moved to, to the second. */
int __wrap_clock_adjtime(clockid_t clock, struct timex *change)
{
	struct timespec now;

	clock_gettime(clock, &now);
	dprintf(2, "clock %d moved: %lld\n", (int)clock,
		(long long)(now.tv_sec + change->time.tv_sec + (now.tv_nsec + change->time.tv_usec + 500000000) / 1000000000));
	return 0;
}

/* "timer": its rate was measured wrongly, so that it takes twice as long. */
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left)
{
	struct timespec slow = {.tv_nsec = wanted->tv_nsec * 2};

	return __real_nanosleep(fault("timer") && wanted->tv_sec == 0 && wanted->tv_nsec < 500000000 ? &slow : wanted, left);
}

/* Of the whole machine, whatever others have written: it may take minutes. */
void __wrap_sync(void)
{
	dprintf(2, "sync\n");
}
