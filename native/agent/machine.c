#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <malloc.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "clock.h"
#include "log.h"
#include "pages.h"
#include "plan.h"
#include "spare.h"
#include "wire.h"

enum {
	BITS_PER_BYTE = 8,
	CLOCK_TRIES = 1000, /* times CLOCK_PAUSE_NS: the kernel takes a second, from its boot on */
	CLOCK_PAUSE_NS = 10 * 1000 * 1000,
	TIMER_TRIES = 50,
	TIMER_SLEEP_NS = 20 * 1000 * 1000,
	TIMER_LATEST_NS = 30 * 1000 * 1000, /* a kernel without high resolution is late by a tick of 4 ms, or two */
};

/* Open from SETTLE on: each clone is spared the opening, before its first answer. */
static int random_device = -1;

/* struct rand_pool_info with its buffer. */
struct entropy {
	int entropy_count; /* bits */
	int buf_size;	   /* bytes */
	uint8_t bytes[WIRE_ENTROPY_SIZE];
};

static int open_random_device(void)
{
	if (random_device < 0)
		random_device = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	return random_device < 0 ? -errno : 0;
}

/* Two clones of one template would draw the same random numbers: mixing in is not enough, the generator must reseed now. */
static int mix_entropy(const uint8_t *bytes)
{
	struct entropy entropy = {.entropy_count = WIRE_ENTROPY_SIZE * BITS_PER_BYTE, .buf_size = WIRE_ENTROPY_SIZE};
	int error = open_random_device();

	if (error)
		return error;
	memcpy(entropy.bytes, bytes, sizeof(entropy.bytes));
	error = check(ioctl(random_device, RNDADDENTROPY, &entropy));
	explicit_bzero(&entropy, sizeof(entropy));
	return error ? error : check(ioctl(random_device, RNDRESEEDCRNG));
}

static int set_clock(uint64_t realtime_ns)
{
	struct timespec now = {.tv_sec = (time_t)(realtime_ns / NS_PER_S), .tv_nsec = (long)(realtime_ns % NS_PER_S)};

	return check(clock_settime(CLOCK_REALTIME, &now));
}

/* By the system call. A process reads KVM's clock from processor 0's page, and one that sleeps has a page from before the pause until it wakes. */
static int64_t kernels_date_ns(void)
{
	struct timespec now = {0};

	(void)syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* A message is late by as much as the host is busy. And whoever looks at the clock and then sets it may stand still in between: so it is moved. */
void machine_date(const struct wire_date *date)
{
	int64_t offset_ns = (int64_t)date->realtime_ns - kernels_date_ns();
	int64_t seconds = offset_ns / NS_PER_S - (offset_ns % NS_PER_S < 0);
	struct timex change = {
		.modes = ADJ_SETOFFSET | ADJ_NANO, .time.tv_sec = seconds, .time.tv_usec = offset_ns - seconds * NS_PER_S /* ns, and not negative */
	};

	if (offset_ns <= 0 && !date->back)
		return;
	if (clock_adjtime(CLOCK_REALTIME, &change) < 0)
		log_error("set the clock", errno);
}

int machine_identity(uint8_t *payload, size_t size, const char **what)
{
	struct wire_identity *identity = (struct wire_identity *)(void *)payload;
	uint64_t realtime_ns;

	*what = "identity";
	if (size < sizeof(*identity))
		return -EPROTO;
	*what = "mix in entropy";
	int error = mix_entropy(payload + offsetof(struct wire_identity, entropy));
	explicit_bzero(payload + offsetof(struct wire_identity, entropy), WIRE_ENTROPY_SIZE);
	if (error)
		return error;
	*what = "set the clock";
	memcpy(&realtime_ns, payload, sizeof(realtime_ns));
	error = set_clock(realtime_ns);
	if (error || size == sizeof(*identity))
		return error;
	*what = "set the hostname";
	return check(sethostname((const char *)payload + sizeof(*identity), size - sizeof(*identity)));
}

/* Whether the kernel still measures the time stamp counter: then `tsc-early` stands in for it, or waits to be thrown out,
 * and a clone would repeat what is left of the measurement. */
static bool clock_is_provisional(void)
{
	char names[256];
	cleanup_close int fd = open("/sys/devices/system/clocksource/clocksource0/available_clocksource", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, names, sizeof(names) - 1);

	if (got < 0)
		return false;
	names[got] = '\0';
	return strstr(names, "tsc-early") != NULL;
}

static int await_clock(void)
{
	struct timespec pause = {.tv_nsec = CLOCK_PAUSE_NS};

	for (int tries = 0; clock_is_provisional(); tries++) {
		if (tries == CLOCK_TRIES)
			return -ETIME;
		nanosleep(&pause, NULL);
	}
	return 0;
}

bool machine_tell_clock(struct wire_clock *told)
{
	told->monotonic_ns = (uint64_t)clock_ns(CLOCK_MONOTONIC);
	told->cycles = __builtin_ia32_rdtsc();
	return clock_is_provisional();
}

/* The kernel measures its timer's rate at boot, too. One that is too slow makes each sleep as much longer; a busy host makes
 * some longer: so one that is on time is enough. */
static int check_timer(void)
{
	struct timespec pause = {.tv_nsec = TIMER_SLEEP_NS};

	for (int tries = 0; tries < TIMER_TRIES; tries++) {
		int64_t began = clock_ns(CLOCK_MONOTONIC);
		nanosleep(&pause, NULL);
		if (clock_ns(CLOCK_MONOTONIC) - began <= TIMER_LATEST_NS)
			return 0;
	}
	return -ETIME;
}

int machine_settle(const char **what)
{
	*what = "wait until the clock is calibrated";
	int error = await_clock();
	if (error)
		return error;
	*what = "sleep for 20 ms, in 50 tries";
	error = check_timer();
	if (error)
		return error;
	*what = "open the random device";
	error = open_random_device();
	if (error)
		return error;
	spare_make();
	malloc_trim(0);
	pages_own();
	*what = "drop caches";
	cleanup_close int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	sync();
	return check(write(fd, "3", 1));
}
