/* A machine as a process in it sees it: its clocks, processors and memory. The first word says what is looked at.
 *
 *   clocks             each byte on stdin is answered with a line of all clocks; meanwhile it sleeps and looks again and again
 *   hops               one thread on each processor in turn: clocks that go back, sleeps that take too long
 *   cpuid LEAF...      eax, ebx, ecx and edx of each leaf
 *   memory MIB SEED    write to so much memory; then each byte on stdin is answered with how much of it is another's
 *   high MIB           the same at once, and how much of it is above 4 GiB
 *   huge MIB           the same with pages of 2 MiB, which it has the kernel set aside
 *   show FILE...       what is in them
 */
#include <cpuid.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
	NS_PER_MS = 1000 * 1000,
	LOOK_MS = 10, /* between two looks at the clocks */
	SLEEP_NS = 20 * 1000 * 1000,
	ROUNDS = 50,
	LOOKS = 20, /* at the clocks, on each processor of a round */
	PAGE = 4096,
	MIB = 1024 * 1024,
	TEXT_SIZE = 65536,
};

static const struct {
	const char *name;
	clockid_t id;
} clocks[] = {{"realtime", CLOCK_REALTIME}, {"monotonic", CLOCK_MONOTONIC}, {"boottime", CLOCK_BOOTTIME}, {"raw", CLOCK_MONOTONIC_RAW}};

enum { CLOCKS = sizeof(clocks) / sizeof(clocks[0]) };

static int64_t last_ns[CLOCKS], back_ns; /* how far any of them went back, at most */

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(clockid_t id)
{
	struct timespec now;

	if (clock_gettime(id, &now) < 0)
		fail("clock_gettime");
	return (int64_t)now.tv_sec * 1000 * NS_PER_MS + now.tv_nsec;
}

static void look(void)
{
	for (int i = 0; i < CLOCKS; i++) {
		int64_t now = now_ns(clocks[i].id);

		if (last_ns[i] - now > back_ns)
			back_ns = last_ns[i] - now;
		last_ns[i] = now;
	}
}

static void tell_clocks(int64_t slept_ns)
{
	look();
	for (int i = 0; i < CLOCKS; i++)
		printf("%s %" PRId64 " ", clocks[i].name, last_ns[i]);
	printf("back %" PRId64 " slept %" PRId64 "\n", back_ns, slept_ns);
	fflush(stdout);
	back_ns = 0;
}

/* How long the longest of its short sleeps was, by its own clock: of a machine that stood still, or had no timer. */
static void watch_clocks(void)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	int64_t longest_ns = 0;
	char byte;

	for (;;) {
		int64_t began = now_ns(CLOCK_MONOTONIC);
		int ready = poll(&input, 1, LOOK_MS);
		int64_t slept = now_ns(CLOCK_MONOTONIC) - began;

		look();
		if (slept > longest_ns)
			longest_ns = slept;
		if (!ready)
			continue;
		if (read(STDIN_FILENO, &byte, 1) != 1)
			return;
		tell_clocks(longest_ns);
		longest_ns = 0;
	}
}

static void move_to(int processor)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		fail("sched_setaffinity");
}

static void hop(void)
{
	int processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
	struct timespec pause = {.tv_nsec = SLEEP_NS};
	int64_t longest_ns = 0;

	for (int round = 0; round < ROUNDS; round++) {
		for (int processor = 0; processor < processors; processor++) {
			move_to(processor);
			for (int i = 0; i < LOOKS; i++)
				look();
		}
	}
	for (int processor = 0; processor < processors; processor++) {
		move_to(processor);
		int64_t began = now_ns(CLOCK_MONOTONIC);
		nanosleep(&pause, NULL);
		int64_t slept = now_ns(CLOCK_MONOTONIC) - began;
		if (slept > longest_ns)
			longest_ns = slept;
	}
	printf("processors %d back %" PRId64 " slept %" PRId64 "\n", processors, back_ns, longest_ns);
}

static void tell_cpuid(char **leaves)
{
	for (; *leaves; leaves++) {
		unsigned leaf = (unsigned)strtoul(*leaves, NULL, 16), a, b, c, d;

		__cpuid_count(leaf, 0, a, b, c, d);
		printf("%x %u %u %u %u\n", leaf, a, b, c, d);
	}
}

static uint64_t *fill(size_t size, uint64_t seed, int flags)
{
	uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (words == MAP_FAILED)
		fail("mmap");
	for (size_t i = 0; i < size / sizeof(*words); i++)
		words[i] = seed ^ i;
	return words;
}

static size_t others(const uint64_t *words, size_t size, uint64_t seed)
{
	size_t found = 0;

	for (size_t i = 0; i < size / sizeof(*words); i++)
		found += words[i] != (seed ^ i);
	return found;
}

static void keep_memory(size_t size, uint64_t seed)
{
	uint64_t *words = fill(size, seed, 0);
	char byte;

	printf("full\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) == 1) {
		printf("others %zu\n", others(words, size, seed));
		fflush(stdout);
	}
}

/* Where its pages are (Documentation/admin-guide/mm/pagemap.rst): bits 0 to 54 are the page's number, for who may know. */
static size_t above_4_gib(const void *memory, size_t size)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	size_t found = 0;

	if (pagemap < 0)
		fail("pagemap");
	for (size_t offset = 0; offset < size; offset += PAGE) {
		uint64_t entry;

		if (pread(pagemap, &entry, sizeof(entry), (off_t)(((uintptr_t)memory + offset) / PAGE * sizeof(entry))) != sizeof(entry))
			fail("pagemap");
		found += (entry & ((1ULL << 55) - 1)) >= (1ULL << 32) / PAGE;
	}
	close(pagemap);
	return found * PAGE;
}

static void use_memory(size_t size, int flags)
{
	uint64_t *words = fill(size, size, flags);

	printf("others %zu high %zu\n", others(words, size, size), above_4_gib(words, size));
}

static void set_aside(size_t size)
{
	FILE *file = fopen("/proc/sys/vm/nr_hugepages", "w");

	if (!file || fprintf(file, "%zu", size / (2 * MIB)) < 0 || fclose(file))
		fail("nr_hugepages");
	use_memory(size, MAP_HUGETLB);
}

static void show(char **paths)
{
	static char text[TEXT_SIZE];

	for (; *paths; paths++) {
		FILE *file = fopen(*paths, "r");
		size_t size = file ? fread(text, 1, sizeof(text), file) : 0;

		if (!file)
			fail(*paths);
		printf("== %s\n", *paths);
		fwrite(text, 1, size, stdout);
		fclose(file);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	size_t size = argc > 2 ? strtoul(argv[2], NULL, 10) * MIB : 0;

	if (!strcmp(what, "clocks"))
		watch_clocks();
	else if (!strcmp(what, "hops"))
		hop();
	else if (!strcmp(what, "cpuid"))
		tell_cpuid(argv + 2);
	else if (!strcmp(what, "memory") && argc == 4)
		keep_memory(size, strtoull(argv[3], NULL, 10));
	else if (!strcmp(what, "high"))
		use_memory(size, 0);
	else if (!strcmp(what, "huge"))
		set_aside(size);
	else if (!strcmp(what, "show"))
		show(argv + 2);
	else
		return 2;
	return 0;
}
