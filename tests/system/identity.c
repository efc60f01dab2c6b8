/* What makes a clone another machine than its siblings, as the container's first process sees it. Lines "name value".
 *
 * Random bytes are drawn before anything else, so that nothing has stirred the generator since the process began.
 * Afterwards every byte on stdin is answered with the time: a question and its answer bound the clock's error. */
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { RANDOM_SIZE = 16, TEXT_SIZE = 256 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void print_bytes(const char *name, const uint8_t *bytes)
{
	printf("%s ", name);
	for (int i = 0; i < RANDOM_SIZE; i++)
		printf("%02x", bytes[i]);
	printf("\n");
}

static void print_file(const char *name, const char *path)
{
	char text[TEXT_SIZE];
	FILE *file = fopen(path, "r");

	if (!file || !fgets(text, sizeof(text), file))
		fail(path);
	printf("%s %s", name, text);
	fclose(file);
}

static void print_time(const char *name)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now) < 0)
		fail("clock_gettime");
	printf("%s %lld%09ld\n", name, (long long)now.tv_sec, now.tv_nsec);
	fflush(stdout);
}

/* The first word of the thread's memory that glibc fills from AT_RANDOM: the seed of the stack canary. */
static uint64_t canary(void)
{
	uint64_t value;

	__asm__("mov %%fs:0x28, %0" : "=r"(value));
	return value;
}

int main(void)
{
	uint8_t drawn[RANDOM_SIZE], device[RANDOM_SIZE];
	char hostname[HOST_NAME_MAX + 1], byte;
	const uint8_t *given = (const uint8_t *)getauxval(AT_RANDOM); /* /proc/self/auxv has the same pointer */
	int urandom;

	if (getrandom(drawn, sizeof(drawn), 0) != sizeof(drawn))
		fail("getrandom");
	urandom = open("/dev/urandom", O_RDONLY);
	if (urandom < 0 || read(urandom, device, sizeof(device)) != sizeof(device))
		fail("/dev/urandom");
	print_bytes("getrandom", drawn);
	print_bytes("urandom", device);
	print_bytes("at_random", given);
	printf("canary %016llx\n", (unsigned long long)canary());
	printf("stack %p\n", (void *)&byte);
	print_file("boot_id", "/proc/sys/kernel/random/boot_id");
	print_file("machine_id", "/etc/machine-id");
	if (gethostname(hostname, sizeof(hostname)) < 0)
		fail("gethostname");
	printf("hostname %s\n", hostname);
	print_time("time");
	while (read(STDIN_FILENO, &byte, 1) == 1)
		print_time("time");
	return 0;
}
