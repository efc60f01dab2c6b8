/* The manifest: a line an entry, what stat(2), readdir(3), readlink(2), listxattr(2) and read(2) say.
 *
 * entry PATH KIND D_TYPE MODE UID GID LINKS SIZE MTIME RDEV INODE D_INO DEVICE CRC-OR-TARGET XATTR=HEX,...
 *
 * Bytes that are no plain letter are %XX. Files of more than 64 MiB have no CRC; a check of their own reads them in part. */
#define _GNU_SOURCE
#include "rootfs_probe.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { LARGE = 64 << 20, PATH_SIZE = 1 << 16 };

static const char kinds[] = "?pc?d?b?-?l?s???"; /* by S_IFMT >> 12, which is d_type's number too */

static char path[PATH_SIZE];

static void print_escaped(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		unsigned char byte = (unsigned char)text[i];

		if (isalnum(byte) || strchr("/._-", byte))
			putchar(byte);
		else
			printf("%%%02x", byte);
	}
}

static void print_target(int directory, const char *name)
{
	char target[TEXT + 1];
	ssize_t length = readlinkat(directory, name, target, sizeof(target));

	must(length >= 0);
	putchar(' ');
	print_escaped(target, (size_t)length);
}

static int by_name(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

/* By the path below /proc: there is no getxattrat(2), and a symlink's own are wanted. */
static void print_xattrs(int directory, const char *name)
{
	char place[PATH_SIZE], list[1 << 16], value[1 << 16], *names[256];
	ssize_t length;
	size_t count = 0;

	(void)snprintf(place, sizeof(place), "/proc/self/fd/%d/%s", directory, name);
	length = llistxattr(place, list, sizeof(list));
	must(length >= 0);
	for (char *at = list; at < list + length && count < 256; at += strlen(at) + 1)
		names[count++] = at;
	qsort(names, count, sizeof(*names), by_name);
	putchar(' ');
	for (size_t i = 0; i < count; i++) {
		ssize_t size = lgetxattr(place, names[i], value, sizeof(value));

		printf("%s%s=", i ? "," : "", names[i]);
		if (size < 0) /* listed, and then not there: a line of the manifest rather than its end */
			printf("!%d", errno);
		for (ssize_t at = 0; at < size; at++)
			printf("%02x", (unsigned char)value[at]);
	}
}

static bool print_entry(int directory, const struct dirent *entry)
{
	struct stat status;
	char kind;

	must(fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0);
	kind = kinds[status.st_mode >> 12 & 15];
	printf("entry ");
	print_escaped(path, strlen(path));
	printf(" %c %c %04o %u %u %lu", kind, kinds[entry->d_type & 15], status.st_mode & 07777, status.st_uid, status.st_gid, (unsigned long)status.st_nlink);
	printf(" %lld %lld.%09ld %u:%u", (long long)status.st_size, (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec, major(status.st_rdev),
	       minor(status.st_rdev));
	printf(" %llu %llu %llu", (unsigned long long)status.st_ino, (unsigned long long)entry->d_ino, (unsigned long long)status.st_dev);
	if (kind == 'l')
		print_target(directory, entry->d_name);
	else if (kind == '-' && status.st_size <= LARGE)
		printf(" %08x", crc_at(directory, entry->d_name));
	else
		printf(" .");
	print_xattrs(directory, entry->d_name);
	putchar('\n');
	return kind == 'd';
}

/* `path` is the name of what `fd` is; entries by descriptor, since paths may be longer than PATH_MAX. The stream is closed before the
 * next level is opened: its buffer is as large as st_blksize says, and 300 of them may be more than a small VM has. */
static void walk(int fd)
{
	struct dirent **entries;
	size_t end = strlen(path);
	int count = scandirat(fd, ".", &entries, not_dots, NULL);

	must(fd >= 0 && count >= 0);
	for (int i = 0; i < count; i++) {
		(void)snprintf(path + end, sizeof(path) - end, "/%s", entries[i]->d_name);
		if (print_entry(fd, entries[i]) && strcmp(path, "/t/big") != 0) /* 10,000 entries: a check of its own counts them */
			walk(openat(fd, entries[i]->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
		path[end] = 0;
		free(entries[i]);
	}
	free(entries);
	close(fd);
}

void manifest(const char *directory)
{
	(void)snprintf(path, sizeof(path), "%s", directory);
	walk(open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}
