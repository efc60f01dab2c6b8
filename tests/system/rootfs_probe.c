/* A container's view of its root file system, told line by line.
 *
 *   manifest DIRECTORY...   what is below, an `entry` a line: rootfs_data.py reads the same from the host's tree
 *   contract                the kernel's version, the manifest of /t, and a `check` a line: "check name ok", "check name what went wrong";
 *                           then "waiting", and when stdin says so, whether its changes are still there and nobody else's
 *   spoil                   changes that another container on the same rootfs must not see
 *   exit CODE, ids, chown   what checks have executed: from the lower, set-id, with a file capability */
#define _GNU_SOURCE
#include "rootfs_probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { CHECK_S = 60 };

static const char *current;

void wrong(const char *where, const char *text)
{
	int error = errno;

	printf("check %s %s: not so: %s (%s)\n", current, where, text, strerror(error));
	exit(1);
}

uint8_t pattern(size_t offset)
{
	return (uint8_t)(offset * 7 + offset / 251);
}

bool has_pattern(const char *path, size_t size)
{
	static uint8_t block[1 << 16];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t offset = 0;
	ssize_t got;

	while (fd >= 0 && (got = read(fd, block, sizeof(block))) > 0)
		for (ssize_t i = 0; i < got; i++)
			if (block[i] != pattern(offset++))
				return false;
	return fd >= 0 && close(fd) == 0 && offset == size;
}

bool says(const char *path, const char *text)
{
	char found[TEXT];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, found, sizeof(found));

	if (fd >= 0)
		close(fd);
	return length == (ssize_t)strlen(text) && memcmp(found, text, (size_t)length) == 0;
}

int not_dots(const struct dirent *entry)
{
	return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int bytewise(const struct dirent **left, const struct dirent **right)
{
	return strcmp((*left)->d_name, (*right)->d_name);
}

bool lists(const char *directory, const char *names)
{
	struct dirent **entries;
	char found[TEXT] = "";
	int count = scandir(directory, &entries, not_dots, bytewise);

	for (int i = 0; i < count; i++) {
		if (i)
			strncat(found, " ", sizeof(found) - strlen(found) - 1);
		strncat(found, entries[i]->d_name, sizeof(found) - strlen(found) - 1);
	}
	return count >= 0 && strcmp(found, names) == 0;
}

bool is_gone(const char *path)
{
	struct dirent **entries;
	struct stat status;
	char parent[TEXT];
	const char *name = strrchr(path, '/') + 1;
	int count;

	(void)snprintf(parent, sizeof(parent), "%.*s", (int)(name - path), path);
	if (lstat(path, &status) == 0 || errno != ENOENT)
		return false;
	count = scandir(parent, &entries, not_dots, bytewise);
	for (int i = 0; i < count; i++)
		if (strcmp(entries[i]->d_name, name) == 0)
			return false;
	return count >= 0;
}

bool has_xattr(const char *path, const char *name, const char *value)
{
	char found[TEXT];
	ssize_t length = lgetxattr(path, name, found, sizeof(found));

	return length == (ssize_t)strlen(value) && memcmp(found, value, (size_t)length) == 0;
}

struct stat status_of(const char *path)
{
	struct stat status;

	must(lstat(path, &status) == 0);
	return status;
}

static void write_text(const char *path, int flags, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0644);

	must(fd >= 0);
	must(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	must(close(fd) == 0);
}

void put(const char *path, const char *text)
{
	write_text(path, O_CREAT | O_TRUNC, text);
}

void add(const char *path, const char *text)
{
	write_text(path, O_APPEND, text);
}

void become(uid_t user, gid_t group)
{
	must(setgroups(0, NULL) == 0);
	must(setresgid(group, group, group) == 0);
	must(setresuid(user, user, user) == 0);
}

int exit_of(const char *program, const char *argument)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		execl(program, program, argument, "42", NULL);
		_exit(errno == EACCES ? 126 : 127);
	}
	must(waitpid(child, &status, 0) == child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void finish(pid_t child)
{
	int status;

	must(waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		exit(1); /* it has said why, or was killed, which run() tells */
}

uint32_t crc_at(int directory, const char *name)
{
	static uint32_t table[256];
	static uint8_t block[1 << 16];
	uint32_t value = ~0U;
	ssize_t got;
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);

	for (uint32_t i = 0; !table[255] && i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320U : 0);
	}
	must(fd >= 0);
	while ((got = read(fd, block, sizeof(block))) > 0)
		for (ssize_t i = 0; i < got; i++)
			value = value >> 8 ^ table[(uint8_t)(value ^ block[i])];
	must(got == 0);
	must(close(fd) == 0);
	return ~value;
}

uint32_t crc(const char *path)
{
	return crc_at(AT_FDCWD, path);
}

/* In a process of its own: a check changes who it is, and may crash. */
static void run(const struct check *check)
{
	int status;
	pid_t child;

	current = check->name;
	fflush(stdout);
	child = fork();
	if (child == 0) {
		alarm(CHECK_S);
		umask(022);
		check->run();
		printf("check %s ok\n", check->name);
		exit(0);
	}
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status))
		printf("check %s ended by signal %d\n", check->name, WTERMSIG(status));
	else if (WEXITSTATUS(status) > 1)
		printf("check %s ended with %d\n", check->name, WEXITSTATUS(status));
}

static void run_all(const struct check *checks)
{
	for (; checks->name; checks++)
		run(checks);
}

static void spoil(void)
{
	current = "spoil";
	put("/t/isolation/theirs", "theirs\n");
	put("/t/isolation/changed", "theirs\n");
	must(unlink("/t/isolation/theirs-to-delete") == 0);
}

static void mine(void)
{
	put("/t/isolation/mine", "mine\n");
	put("/t/isolation/changed", "mine\n");
	must(unlink("/t/isolation/mine-to-delete") == 0);
}

static void isolated(void)
{
	must(lists("/t/isolation", "changed mine theirs-to-delete"));
	must(says("/t/isolation/changed", "mine\n"));
	must(says("/t/isolation/theirs-to-delete", "lower\n"));
}

static int contract(void)
{
	static const struct check before[] = {{"own_changes", mine}, {NULL, NULL}};
	static const struct check after[] = {{"others_changes_are_not_seen", isolated}, {NULL, NULL}};

	struct utsname kernel;

	current = "manifest";
	must(uname(&kernel) == 0);
	printf("kernel %s\n", kernel.release);
	manifest("/t");
	run_all(lower_checks);
	run_all(overlay_checks);
	run_all(upper_checks);
	run_all(before);
	puts("waiting");
	fflush(stdout);
	(void)getchar();
	run_all(after);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	if (strcmp(what, "contract") == 0)
		return contract();
	if (strcmp(what, "manifest") == 0) {
		current = what;
		for (int i = 2; i < argc; i++)
			manifest(argv[i]);
		return 0;
	}
	if (strcmp(what, "spoil") == 0) {
		spoil();
		return 0;
	}
	if (strcmp(what, "exit") == 0 && argc > 2)
		return atoi(argv[2]);
	if (strcmp(what, "euid") == 0) /* the checks have 2000 and 3000 for owners */
		return geteuid() == 2000 && getuid() == 1000 ? 42 : 1;
	if (strcmp(what, "egid") == 0)
		return getegid() == 3000 && getgid() == 1000 ? 42 : 1;
	if (strcmp(what, "chown") == 0)
		return chown("/t/exec/not-mine", 4000, 4000) == 0 ? 42 : errno;
	fprintf(stderr, "usage: probe contract|manifest DIRECTORY...|spoil|exit CODE|euid|egid|chown\n");
	return 2;
}
