/* Clocks as one number. */
#ifndef RUNDCTL_CLOCK_H
#define RUNDCTL_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US INT64_C(1000)
#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S INT64_C(1000000000)

/* clock_gettime(2) in nanoseconds: enough until the year 2262. The clocks named here are on every kernel, so there is no error. */
static inline int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	(void)clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static inline int64_t clock_ms(clockid_t clock)
{
	return clock_ns(clock) / NS_PER_MS;
}

#endif
