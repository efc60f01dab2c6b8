/* A guest's clock runs by itself, so it must be told when the host's date was set: by an administrator, by NTP after a boot without network, or since the
 * host has slept. The kernel tells that by a timer for the end of time that is cancelled then (timerfd_create(2)): it wakes nobody otherwise. */
#include "date.h"

#include <errno.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "peers.h"

int date_watch(void)
{
	const struct itimerspec never = {.it_value.tv_sec = INT64_MAX / NS_PER_S};
	int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);

	if (fd >= 0 && timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

void date_tell(struct shim *shim)
{
	struct wire_header head = {.type = WIRE_CLOCK};
	uint64_t realtime_ns = (uint64_t)clock_ns(CLOCK_REALTIME);

	send_agent(shim, &head, &realtime_ns, sizeof(realtime_ns));
}

/* Who is paused is told when it goes on, and who has not begun by its IDENTITY. */
void date_serve(struct shim *shim)
{
	uint64_t expired;

	if (read(shim->date, &expired, sizeof(expired)) < 0 && errno == ECANCELED && shim->agent_active && !shim->paused)
		date_tell(shim);
}
