/* The assembly of a recursive volume while somebody renames a directory of it: in a working directory with `state` and `source`, where source/y/proc is a
 * procfs with a mount on its kallsyms and a read-only one on its sys. Before some system call of the assembly that looks at or changes files, source/y leaves
 * the source; before a later one, or at the end, it is back. All such pairs are tried, or of the later ones each STRIDEth. Prints how many calls there are,
 * what a guest would see if nobody renamed, and for each thing that it would see otherwise, the first pair. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "assembly.h"

enum verdict { NOTHING, COVERED, PROCESSES, UNMASKED, FAILED, VERDICTS };
static const char *const words[] = {"nothing", "covered", "processes", "unmasked", "failed"};
static int away, back, here, *calls;

static void rename_y(bool leave)
{
	const char *const names[] = {"source/y", "elsewhere"};

	if (renameat(here, names[!leave], here, names[leave]) < 0)
		_exit(VERDICTS);
}

static void step(void)
{
	if (++*calls == away)
		rename_y(true);
	if (*calls == back)
		rename_y(false);
}

/* The linker puts these around what the assembly calls (--wrap). */
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	long words_of_it[5];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 5; i++)
		words_of_it[i] = va_arg(list, long);
	va_end(list);
	step();
	return __real_syscall(number, words_of_it[0], words_of_it[1], words_of_it[2], words_of_it[3], words_of_it[4]);
}

ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size)
{
	step();
	return __real_read(fd, buffer, size);
}

static enum verdict judge(int directory)
{
	int procfs = openat(directory, "0/source/y/proc", O_PATH | O_DIRECTORY);
	struct statvfs flags;
	struct stat status;

	if (procfs < 0 || faccessat(procfs, "uptime", F_OK, 0) < 0)
		return NOTHING;
	if (faccessat(procfs, "self/environ", F_OK, 0) == 0 || faccessat(procfs, "1", F_OK, 0) == 0)
		return PROCESSES;
	if (fstatat(procfs, "kallsyms", &status, 0) < 0 || !S_ISCHR(status.st_mode))
		return UNMASKED;
	if (fstatvfs(openat(procfs, "sys", O_PATH), &flags) < 0 || !(flags.f_flag & ST_RDONLY))
		return UNMASKED;
	return COVERED;
}

static enum verdict attempt(void)
{
	struct volume volume = {.fd = open("source", O_PATH), .recursive = true, .name = "source"};
	struct options options = {.state = open("state", O_PATH), .volumes = &volume, .volume_count = 1, .volumes_fd = -1, .exported = -1};
	int directory = volumes_assemble(&options);

	if (away && *calls >= away && (!back || *calls < back))
		rename_y(false);
	return directory < 0 ? FAILED : judge(directory);
}

static enum verdict in_a_child(void)
{
	int status;
	pid_t pid;

	*calls = 0;
	pid = fork();
	if (pid == 0)
		_exit((int)attempt());
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) >= VERDICTS)
		abort();
	return (enum verdict)WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	int stride = argc > 1 ? atoi(argv[1]) : 1;
	bool seen[VERDICTS] = {0};
	int most;

	here = open(".", O_RDONLY | O_DIRECTORY);
	calls = mmap(NULL, sizeof(*calls), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (here < 0 || calls == MAP_FAILED)
		return 2;
	printf("%s\n", words[in_a_child()]);
	printf("%d\n", most = *calls);
	for (away = 1; away <= most; away++) {
		for (back = away + 1; back <= most + stride; back += stride) {
			enum verdict verdict = in_a_child();

			if (!seen[verdict])
				printf("%s %d %d\n", words[verdict], away, back);
			seen[verdict] = true;
		}
	}
	return 0;
}
