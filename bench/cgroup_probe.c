/* What the kernel takes to let a process into cgroups, and what processes cost that wake up in them. For bench/cgroup.py.
 *
 *   attach            reads one line of paths: `cgroup.procs` files (v1: written to) and directories (v2: born into); prints nanoseconds
 *   wake SECONDS HZ   reads a line of `cgroup.procs` files for each process to be; prints the processes' CPU nanoseconds between two moments
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE_SIZE = 16384, PATHS_MAX = 64, PROCESSES_MAX = 4096, SECOND = 1000000000 };

static void die(const char *what)
{
	fprintf(stderr, "cgroup_probe: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static size_t split(char *line, char **paths)
{
	size_t count = 0;

	for (char *word = strtok(line, " \n"); word && count < PATHS_MAX; word = strtok(NULL, " \n"))
		paths[count++] = word;
	return count;
}

static int open_path(const char *path)
{
	struct stat status;
	int fd;

	if (stat(path, &status) < 0)
		die(path);
	fd = open(path, S_ISDIR(status.st_mode) ? O_RDONLY | O_DIRECTORY | O_CLOEXEC : O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void be_born_in(int fd)
{
	struct clone_args arguments = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (unsigned)fd};
	long pid = syscall(SYS_clone3, &arguments, sizeof(arguments));

	if (pid < 0)
		die("clone3");
	if (pid == 0)
		_exit(0);
}

/* The launcher's way: into each v1 cgroup by a write, into the v2 one by being born there. */
static int attach(void)
{
	char line[LINE_SIZE], *paths[PATHS_MAX];
	int fds[PATHS_MAX], born = -1;
	uint64_t began, joined;
	size_t count;

	if (!fgets(line, sizeof(line), stdin))
		return 1;
	count = split(line, paths);
	for (size_t i = 0; i < count; i++)
		fds[i] = open_path(paths[i]);
	began = now_ns(CLOCK_MONOTONIC);
	for (size_t i = 0; i < count; i++) {
		if (strcmp(strrchr(paths[i], '/'), "/cgroup.procs") != 0)
			born = fds[i];
		else if (write(fds[i], "0", 1) != 1)
			die(paths[i]);
	}
	joined = now_ns(CLOCK_MONOTONIC);
	if (born >= 0)
		be_born_in(born);
	printf("%llu %llu\n", (unsigned long long)(joined - began), (unsigned long long)(now_ns(CLOCK_MONOTONIC) - joined));
	fflush(stdout);
	(void)getchar(); /* until the cgroup is not needed any more */
	while (wait(NULL) > 0)
		;
	return 0;
}

static void sleep_until(uint64_t end, long hz)
{
	struct timespec next;
	uint64_t at = now_ns(CLOCK_MONOTONIC);

	do {
		at = hz ? at + (uint64_t)(SECOND / hz) : end;
		next = (struct timespec){.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)};
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
			;
	} while (at < end);
}

static void member(char *line, int barrier, uint64_t *spent, double seconds, long hz) __attribute__((noreturn));
static void member(char *line, int barrier, uint64_t *spent, double seconds, long hz)
{
	char *paths[PATHS_MAX], byte;
	size_t count = split(line, paths);
	uint64_t before;

	for (size_t i = 0; i < count; i++) {
		int fd = open_path(paths[i]);
		if (write(fd, "0", 1) != 1)
			die(paths[i]);
		close(fd);
	}
	*spent = 1;			 /* joined */
	if (read(barrier, &byte, 1) < 0) /* its end: all are there */
		die("wait");
	before = now_ns(CLOCK_PROCESS_CPUTIME_ID);
	sleep_until(now_ns(CLOCK_MONOTONIC) + (uint64_t)(seconds * SECOND), hz);
	*spent = now_ns(CLOCK_PROCESS_CPUTIME_ID) - before;
	_exit(0);
}

static int wake(double seconds, long hz)
{
	uint64_t *spent = mmap(NULL, PROCESSES_MAX * sizeof(*spent), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t total = 0;
	char line[LINE_SIZE];
	size_t count = 0;
	int barrier[2], status, failed = 0;

	if (spent == MAP_FAILED || pipe(barrier) < 0)
		die("prepare");
	while (count < PROCESSES_MAX && fgets(line, sizeof(line), stdin)) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			close(barrier[1]);
			member(line, barrier[0], &spent[count], seconds, hz);
		}
		while (!__atomic_load_n(&spent[count], __ATOMIC_SEQ_CST)) {
			if (waitpid(pid, &status, WNOHANG) != 0) {
				fprintf(stderr, "cgroup_probe: a process ended before it had joined\n");
				return 1;
			}
			usleep(100);
		}
		count++;
	}
	puts("ready");
	fflush(stdout);
	close(barrier[1]);
	while (wait(&status) > 0)
		failed |= status;
	for (size_t i = 0; i < count; i++)
		total += spent[i];
	printf("%llu\n", (unsigned long long)total);
	return failed != 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "attach") == 0)
		return attach();
	if (argc == 4 && strcmp(argv[1], "wake") == 0)
		return wake(atof(argv[2]), atol(argv[3]));
	fprintf(stderr, "cgroup_probe: attach, or wake SECONDS HZ\n");
	return 2;
}
