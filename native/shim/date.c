/* A guest's clock runs by itself, so it must be told when the host's date was set: by an administrator, by NTP after a boot without network, or since the
 * host has slept. The kernel tells that by a timer for the end of time that is cancelled then (timerfd_create(2)): it wakes nobody otherwise. */
#include "date.h"

#include <errno.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "peers.h"

/* How far the date is from the clock that cannot be set, at most and at least: we may be interrupted between two looks. */
static struct wire_date date_look(struct shim *shim)
{
	int64_t before = clock_ns(CLOCK_BOOTTIME), now = clock_ns(CLOCK_REALTIME), after = clock_ns(CLOCK_BOOTTIME);
	struct wire_date date = {.realtime_ns = (uint64_t)now, .back = now - before < shim->date_offset_ns};

	shim->date_offset_ns = now - after;
	return date;
}

void date_watch(struct shim *shim)
{
	const struct itimerspec never = {.it_value.tv_sec = INT64_MAX / NS_PER_S};

	shim->date_offset_ns = INT64_MIN;
	shim->date = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (shim->date >= 0 && timerfd_settime(shim->date, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) < 0) {
		close(shim->date);
		shim->date = -1;
	}
	(void)date_look(shim);
}

void date_tell(struct shim *shim)
{
	struct wire_header head = {.type = WIRE_CLOCK};
	struct wire_date date = date_look(shim);

	send_agent(shim, &head, &date, sizeof(date));
}

/* Who is paused is told when it goes on, and who has not begun by its IDENTITY. */
void date_serve(struct shim *shim)
{
	uint64_t expired;

	if (read(shim->date, &expired, sizeof(expired)) < 0 && errno == ECANCELED && shim->agent_active && !shim->paused)
		date_tell(shim);
}
