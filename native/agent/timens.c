#include "timens.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"

enum { TEXT_SIZE = 160 };

/* Seconds and nanoseconds as timens_offsets wants them: the nanoseconds are never negative. */
static int64_t seconds(int64_t ns)
{
	return ns / NS_PER_S - (ns % NS_PER_S < 0);
}

static int write_offsets(const struct wire_plan *head)
{
	char text[TEXT_SIZE];
	int64_t monotonic = seconds(head->monotonic_offset_ns), boottime = seconds(head->boottime_offset_ns);
	int length = snprintf(text, sizeof(text), "monotonic %lld %lld\nboottime %lld %lld\n", (long long)monotonic,
			      (long long)(head->monotonic_offset_ns - monotonic * NS_PER_S), (long long)boottime,
			      (long long)(head->boottime_offset_ns - boottime * NS_PER_S));
	cleanup_close int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write(fd, text, (size_t)length) < 0 ? -errno : 0;
}

int timens_enter(const struct wire_plan *head)
{
	cleanup_close int own = open("/proc/self/ns/time", O_RDONLY | O_CLOEXEC);

	if (own < 0)
		return -errno;
	if (unshare(CLONE_NEWTIME) < 0)
		return -errno;
	int error = write_offsets(head);
	if (error) {
		timens_leave(own);
		return error;
	}
	return take_fd(&own);
}

int timens_leave(int own)
{
	return setns(own, CLONE_NEWTIME) < 0 ? -errno : 0;
}
