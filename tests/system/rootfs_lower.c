/* Checks that read the lower, and who may read it. What is in /t is written by rootfs_data.py. */
#define _GNU_SOURCE
#include "rootfs_probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATTERN "/t/contents/pattern"
#define GIB (1LL << 30)

enum { READERS = 4, DATA_END = 8, LONG_LEVELS = 15, SHORT_LEVELS = 100, LOOKUP_EACH = 10 };

static void reads_at_any_offset(void)
{
	uint8_t block[5000];
	int fd = open(PATTERN, O_RDONLY);
	uint32_t random = 1;

	must(fd >= 0);
	for (int i = 0; i < 200; i++) {
		random = random * 1664525 + 1013904223;
		off_t offset = random % PATTERN_SIZE;
		ssize_t left = PATTERN_SIZE - offset, got = pread(fd, block, sizeof(block), offset);

		must(got == (left < (ssize_t)sizeof(block) ? left : (ssize_t)sizeof(block)));
		for (ssize_t at = 0; at < got; at++)
			must(block[at] == pattern((size_t)(offset + at)));
	}
	must(pread(fd, block, 1, PATTERN_SIZE) == 0);
}

static void large_sparse_file(void)
{
	const off_t size = 5 * GIB;
	char text[DATA_END + 1] = "", zero;
	struct stat status;
	int fd = open("/t/sparse/5GiB", O_RDONLY);

	must(fd >= 0);
	must(fstat(fd, &status) == 0 && status.st_size == size);
	must(pread(fd, text, DATA_END, size - DATA_END) == DATA_END && strcmp(text, "the end\n") == 0);
	must(lseek(fd, -DATA_END, SEEK_END) == size - DATA_END && read(fd, text, sizeof(text)) == DATA_END);
	for (off_t offset = 0; offset < 5 * GIB; offset += GIB / 2)
		must(pread(fd, &zero, 1, offset) == 1 && zero == 0);
	must(pread(fd, text, 1, size) == 0);
}

static uint8_t *map(const char *path, size_t size, int protection, int flags)
{
	int fd = open(path, O_RDONLY);
	void *memory;

	must(fd >= 0);
	memory = mmap(NULL, size, protection, flags, fd, 0);
	must(memory != MAP_FAILED);
	close(fd);
	return memory;
}

static void mmap_shared(void)
{
	const uint8_t *memory = map(PATTERN, PATTERN_SIZE, PROT_READ, MAP_SHARED);

	for (size_t i = 0; i < PATTERN_SIZE; i++)
		must(memory[i] == pattern(i));
	for (size_t i = PATTERN_SIZE; i % 4096; i++)
		must(memory[i] == 0); /* of the last page, behind the file's end */
}

static void mmap_private(void)
{
	uint8_t *memory = map(PATTERN, PATTERN_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	for (size_t i = 0; i < PATTERN_SIZE; i += 1000)
		memory[i] ^= 0xff;
	must(memory[1000] == 255 - pattern(1000));
	must(has_pattern(PATTERN, PATTERN_SIZE));
}

/* x86-64: mov $42, %eax; ret */
static void mmap_executable(void)
{
	int (*code)(void) = (int (*)(void))(uintptr_t)map("/t/exec/code", 6, PROT_READ | PROT_EXEC, MAP_PRIVATE);

	must(code() == 42);
}

static void sendfile_to_upper(void)
{
	int from = open(PATTERN, O_RDONLY), to = open("/t/sent", O_WRONLY | O_CREAT, 0644);

	must(from >= 0 && to >= 0);
	for (ssize_t left = PATTERN_SIZE, sent; left > 0; left -= sent)
		must((sent = sendfile(to, from, NULL, (size_t)left)) > 0);
	must(has_pattern("/t/sent", PATTERN_SIZE));
}

static void copy_file_range_to_upper(void)
{
	int from = open(PATTERN, O_RDONLY), to = open("/t/copied", O_WRONLY | O_CREAT, 0644);
	ssize_t copied = 0;

	must(from >= 0 && to >= 0);
	for (ssize_t left = PATTERN_SIZE; left > 0; left -= copied) {
		copied = copy_file_range(from, NULL, to, NULL, (size_t)left, 0);
		if (copied < 0 && (errno == EXDEV || errno == EOPNOTSUPP) && left == PATTERN_SIZE)
			return; /* as between any two file systems: cp(1) then reads and writes */
		must(copied > 0);
	}
	must(has_pattern("/t/copied", PATTERN_SIZE));
}

/* clang-format off */
static void executes_a_binary(void) { must(exit_of("/t/exec/binary", "exit") == 42); }
static void executes_a_script(void) { must(exit_of("/t/exec/script", "exit") == 42); }
static void mode_decides_what_is_executed(void) { must(exit_of("/t/exec/not-executable", "exit") == 126); }
static void root_reads_mode_0000(void) { must(says("/t/modes/0000", "0000\n")); }
/* clang-format on */

static void setuid_takes_effect(void)
{
	become(1000, 1000);
	must(exit_of("/t/exec/setuid", "euid") == 42);
}

static void setgid_takes_effect(void)
{
	become(1000, 1000);
	must(exit_of("/t/exec/setgid", "egid") == 42);
}

static void file_capability_takes_effect(void)
{
	struct stat status;

	become(1000, 1000);
	must(exit_of("/t/exec/binary", "chown") == EPERM); /* the same program, without */
	must(exit_of("/t/exec/capable", "chown") == 42);
	must(stat("/t/exec/not-mine", &status) == 0 && status.st_uid == 4000 && status.st_gid == 4000);
}

static void acl_allows_who_it_names(void)
{
	become(5000, 5000);
	must(says("/t/acl/for-5000", "secret\n"));
	must_fail(open("/t/acl/for-5000", O_RDWR), EACCES);
}

static void acl_refuses_others(void)
{
	become(5001, 5001);
	must_fail(open("/t/acl/for-5000", O_RDONLY), EACCES);
}

static void modes_hold_for_others(void)
{
	become(1000, 1000);
	must_fail(open("/t/modes/0600", O_RDONLY), EACCES);
	must_fail(open("/t/modes/0644", O_WRONLY), EACCES);
	must_fail(open("/t/modes/0644", O_WRONLY | O_TRUNC), EACCES);
	must_fail(open("/t/modes/dir-0700/inside", O_RDONLY), EACCES);
	must_fail(unlink("/t/modes/0644"), EACCES);
	must_fail(open("/t/modes/new", O_WRONLY | O_CREAT, 0644), EACCES);
	must_fail(chmod("/t/modes/0644", 0666), EPERM);
	must(says("/t/modes/0644", "0644\n"));
}

static void owner_above_65535_reads_its_own(void)
{
	become(70000, 70001);
	must(says("/t/owners/70000-70001", "70000-70001\n"));
	must_fail(open("/t/owners/4294967294-4294967294", O_RDONLY), EACCES);
}

static int by_text(const void *left, const void *right)
{
	return strcmp(left, right);
}

static char (*read_big(size_t *count))[16]
{
	static char names[BIG_DIRECTORY + 10][16];
	DIR *stream = opendir("/t/big");
	struct dirent *entry;

	*count = 0;
	must(stream);
	while ((entry = readdir(stream)))
		if (entry->d_name[0] != '.') {
			must(*count < BIG_DIRECTORY + 10);
			(void)snprintf(names[(*count)++], sizeof(*names), "%.15s", entry->d_name);
		}
	closedir(stream);
	qsort(names, *count, sizeof(*names), by_text);
	return names;
}

static void big_directory_is_complete(void)
{
	size_t count;
	char(*names)[16] = read_big(&count), expected[16];

	must(count == BIG_DIRECTORY);
	for (unsigned i = 0; i < BIG_DIRECTORY; i++) {
		(void)snprintf(expected, sizeof(expected), "entry-%05u", i);
		must(strcmp(names[i], expected) == 0);
	}
}

/* Each tenth: what one finds does not depend on its neighbours, and over 9p under emulation a lookup takes a millisecond. */
static void big_directory_finds_what_it_lists(void)
{
	char path[32];
	struct stat status;

	for (unsigned i = 0; i < BIG_DIRECTORY; i += LOOKUP_EACH) {
		(void)snprintf(path, sizeof(path), "/t/big/entry-%05u", i);
		must(stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0);
	}
	must_fail(stat("/t/big/entry-10000", &status), ENOENT);
}

static void big_directory_goes_on_where_told(void)
{
	DIR *stream = opendir("/t/big");
	struct dirent *entry = NULL;
	char after[16];
	long place;

	must(stream);
	for (int i = 0; i < 5000; i++)
		must(readdir(stream));
	place = telldir(stream);
	must((entry = readdir(stream)));
	(void)snprintf(after, sizeof(after), "%.15s", entry->d_name);
	for (int i = 0; i < 1000; i++)
		must(readdir(stream));
	seekdir(stream, place);
	must((entry = readdir(stream)) && strcmp(entry->d_name, after) == 0);
}

static void big_directory_when_changed(void)
{
	size_t count;
	char(*names)[16];

	must(unlink("/t/big/entry-00000") == 0);
	must(unlink("/t/big/entry-09999") == 0);
	put("/t/big/entry-09999", "new\n");
	put("/t/big/new", "new\n");
	names = read_big(&count);
	must(count == BIG_DIRECTORY);
	must(strcmp(names[0], "entry-00001") == 0);
	must(strcmp(names[count - 2], "entry-09999") == 0);
	must(strcmp(names[count - 1], "new") == 0);
	for (size_t i = 1; i < count; i++)
		must(strcmp(names[i - 1], names[i]) != 0);
}

static void deep_directories(void)
{
	char path[2 * TEXT], *end = path;
	struct stat status;

	end += sprintf(end, "/t/deep");
	for (int i = 0; i < LONG_LEVELS; i++)
		end += sprintf(end, "/%0250d", i);
	must(stat(path, &status) == 0 && S_ISDIR(status.st_mode));
	strcpy(end, "/bottom");
	must(says(path, "bottom\n"));
	end = path + sprintf(path, "/t/deep/short");
	for (int i = 0; i < SHORT_LEVELS; i++)
		end += sprintf(end, "/d");
	strcpy(end, "/bottom");
	must(says(path, "bottom\n"));
}

static void long_names(void)
{
	char path[400];
	struct stat status;

	(void)snprintf(path, sizeof(path), "/t/names/%0254d", 0);
	must(says(path, "long\n"));
	(void)snprintf(path, sizeof(path), "/t/names/%0255d", 0);
	must_fail(stat(path, &status), ENOENT);
	put(path, "255\n");
	must(says(path, "255\n"));
	(void)snprintf(path, sizeof(path), "/t/names/%0256d", 0);
	must_fail(stat(path, &status), ENAMETOOLONG);
	must_fail(open(path, O_WRONLY | O_CREAT, 0644), ENAMETOOLONG);
}

static void symlinks_resolve_inside(void)
{
	char target[TEXT + 1];
	struct stat status;

	must(says("/t/links/relative", "lower\n"));
	must(says("/t/links/absolute", "lower\n"));
	must(says("/t/links/to-directory/file", "lower\n"));
	must(says("/t/links/chain", "lower\n"));
	must_fail(open("/t/links/dangling", O_RDONLY), ENOENT);
	must_fail(open("/t/links/loop", O_RDONLY), ELOOP);
	must_fail(open("/t/links/relative", O_RDONLY | O_NOFOLLOW), ELOOP);
	must(lstat("/t/links/long", &status) == 0 && status.st_size == TEXT - 1);
	must(readlink("/t/links/long", target, sizeof(target)) == TEXT - 1);
	must(readlink("/t/links/long", target, 10) == 10);
	must(says("/t/links/outside", "inside\n")); /* the host has another file there */
	put("/t/links/dangling", "made\n");	    /* through the link */
	must(says("/t/links/made-by-dangling", "made\n"));
}

static void fifo_of_the_lower(void)
{
	char text[6] = "";
	pid_t child = fork();
	int fd;

	if (child == 0) {
		fd = open("/t/special/fifo", O_WRONLY);
		_exit(fd >= 0 && write(fd, "hello", 5) == 5 ? 0 : 1);
	}
	fd = open("/t/special/fifo", O_RDONLY);
	must(fd >= 0 && read(fd, text, 5) == 5 && strcmp(text, "hello") == 0);
	must(read(fd, text, 5) == 0);
	finish(child);
}

static void socket_of_the_lower(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/t/special/socket"};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	must_fail(connect(fd, (struct sockaddr *)&address, sizeof(address)), ECONNREFUSED);
}

static void devices_of_the_lower(void)
{
	char zeros[16];
	int null = open("/t/special/null", O_RDWR), zero = open("/t/special/zero", O_RDONLY);

	must(null >= 0 && zero >= 0);
	must(write(null, "gone", 4) == 4 && read(null, zeros, 1) == 0);
	memset(zeros, 1, sizeof(zeros));
	must(read(zero, zeros, sizeof(zeros)) == sizeof(zeros) && zeros[0] == 0 && zeros[15] == 0);
}

static void read_all_many_times(void)
{
	for (int i = 0; i < 3; i++) {
		must(crc("/t/contents/3MiB") == crc("/t/contents/3MiB-copy"));
		must(has_pattern(PATTERN, PATTERN_SIZE));
		must(lists("/t/concurrent", "a b c d e f g h"));
	}
}

static void concurrent_readers(void)
{
	pid_t readers[READERS];

	for (int i = 0; i < READERS; i++)
		if ((readers[i] = fork()) == 0) {
			read_all_many_times();
			_exit(0);
		}
	for (int i = 0; i < READERS; i++)
		finish(readers[i]);
}

static void locks_on_the_lower(void)
{
	int mine = open("/t/locks/lower", O_RDONLY), other = open("/t/locks/lower", O_RDONLY);
	struct flock reading = {.l_type = F_RDLCK};

	must(mine >= 0 && other >= 0);
	must(flock(mine, LOCK_EX) == 0);
	must_fail(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	must(flock(mine, LOCK_UN) == 0);
	must(flock(other, LOCK_EX | LOCK_NB) == 0);
	must(fcntl(mine, F_SETLK, &reading) == 0);
}

static void statfs_is_plausible(void)
{
	struct statfs root;

	must(statfs("/t", &root) == 0);
	must(root.f_type == OVERLAYFS_SUPER_MAGIC);
	must(root.f_namelen == 255);
	must(root.f_bsize >= 512 && root.f_bsize <= 1 << 20);
	must(root.f_blocks > 0 && root.f_bfree <= root.f_blocks && root.f_bavail <= root.f_bfree);
	must((unsigned long long)root.f_bavail * (unsigned long long)root.f_bsize > 64ULL << 20); /* room to write */
	must(root.f_files > 1000 && root.f_ffree <= root.f_files);
}

const struct check lower_checks[] = {
	{"reads_at_any_offset", reads_at_any_offset},
	{"large_sparse_file", large_sparse_file},
	{"mmap_shared", mmap_shared},
	{"mmap_private", mmap_private},
	{"mmap_executable", mmap_executable},
	{"sendfile_to_upper", sendfile_to_upper},
	{"copy_file_range_to_upper", copy_file_range_to_upper},
	{"executes_a_binary", executes_a_binary},
	{"executes_a_script", executes_a_script},
	{"mode_decides_what_is_executed", mode_decides_what_is_executed},
	{"setuid_takes_effect", setuid_takes_effect},
	{"setgid_takes_effect", setgid_takes_effect},
	{"file_capability_takes_effect", file_capability_takes_effect},
	{"acl_allows_who_it_names", acl_allows_who_it_names},
	{"acl_refuses_others", acl_refuses_others},
	{"modes_hold_for_others", modes_hold_for_others},
	{"root_reads_mode_0000", root_reads_mode_0000},
	{"owner_above_65535_reads_its_own", owner_above_65535_reads_its_own},
	{"big_directory_is_complete", big_directory_is_complete},
	{"big_directory_finds_what_it_lists", big_directory_finds_what_it_lists},
	{"big_directory_goes_on_where_told", big_directory_goes_on_where_told},
	{"big_directory_when_changed", big_directory_when_changed},
	{"deep_directories", deep_directories},
	{"long_names", long_names},
	{"symlinks_resolve_inside", symlinks_resolve_inside},
	{"fifo_of_the_lower", fifo_of_the_lower},
	{"socket_of_the_lower", socket_of_the_lower},
	{"devices_of_the_lower", devices_of_the_lower},
	{"concurrent_readers", concurrent_readers},
	{"locks_on_the_lower", locks_on_the_lower},
	{"statfs_is_plausible", statfs_is_plausible},
	{NULL, NULL},
};
