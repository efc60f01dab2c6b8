/* Checks of files that the container makes itself: what programs expect of a file system that they write to. */
#define _GNU_SOURCE
#include "rootfs_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define U "/t/upper/" /* of the lower, and empty there */

enum { MIB = 1 << 20, SMALL_FILES = 500 };

static void synced(void)
{
	int upper = open(U "synced", O_RDWR | O_CREAT, 0644), directory = open(U, O_RDONLY | O_DIRECTORY);
	int lower = open("/t/contents/4097", O_RDONLY);

	must(upper >= 0 && directory >= 0 && lower >= 0);
	must(write(upper, "data", 4) == 4);
	must(fsync(upper) == 0 && fdatasync(upper) == 0 && syncfs(upper) == 0 && sync_file_range(upper, 0, 0, 2) == 0);
	must(fsync(directory) == 0 && syncfs(directory) == 0);
	must(fsync(lower) == 0 && syncfs(lower) == 0);
	sync();
	must(says(U "synced", "data"));
}

static void punched_hole(void)
{
	static char block[MIB];
	struct stat before, after;
	int fd = open(U "punched", O_RDWR | O_CREAT, 0644);

	must(fd >= 0);
	memset(block, 'x', sizeof(block));
	must(write(fd, block, sizeof(block)) == sizeof(block) && fsync(fd) == 0 && fstat(fd, &before) == 0);
	must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, MIB / 2) == 0);
	must(fstat(fd, &after) == 0 && after.st_size == MIB);
	must(after.st_blocks <= before.st_blocks - MIB / 2 / 512);
	must(pread(fd, block, sizeof(block), 0) == sizeof(block));
	must(block[4095] == 'x' && block[4096] == 0 && block[4095 + MIB / 2] == 0 && block[4096 + MIB / 2] == 'x');
	must(lseek(fd, 0, SEEK_HOLE) == 4096 && lseek(fd, 4096, SEEK_DATA) == 4096 + MIB / 2);
}

static void punched_hole_in_a_file_of_the_lower(void)
{
	uint8_t block[4096];
	int fd = open("/t/overlay/punched", O_RDWR);

	must(fd >= 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 40960, 4096) == 0);
	must(pread(fd, block, 4096, 40960) == 4096 && block[0] == 0 && block[4095] == 0);
	must(pread(fd, block, 1, 40959) == 1 && block[0] == pattern(40959));
	must(pread(fd, block, 1, 45056) == 1 && block[0] == pattern(45056));
}

static void allocated(void)
{
	struct stat status;
	int fd = open(U "allocated", O_RDWR | O_CREAT, 0644);

	must(fd >= 0 && fallocate(fd, 0, 0, MIB) == 0 && fstat(fd, &status) == 0);
	must(status.st_size == MIB && status.st_blocks * 512 >= MIB);
	must(posix_fallocate(fd, 0, 2 * MIB) == 0);
}

static void temporary_without_a_name(void)
{
	char place[64];
	int fd;

	must((fd = open(U, O_TMPFILE | O_RDWR, 0600)) >= 0);
	must(write(fd, "unnamed", 7) == 7);
	must(lists(U "empty", ""));
	(void)snprintf(place, sizeof(place), "/proc/self/fd/%d", fd);
	must(linkat(AT_FDCWD, place, AT_FDCWD, U "empty/named", AT_SYMLINK_FOLLOW) == 0);
	must(says(U "empty/named", "unnamed"));
	must(unlink(U "empty/named") == 0);
}

static void flock_between_processes(void)
{
	int fd = open(U "flock", O_RDWR | O_CREAT, 0644);
	pid_t child;

	must(fd >= 0 && flock(fd, LOCK_EX) == 0);
	child = fork();
	if (child == 0) {
		int other = open(U "flock", O_RDWR);

		must_fail(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
		_exit(0);
	}
	finish(child);
	must(flock(fd, LOCK_UN) == 0);
}

static void fcntl_between_processes(void)
{
	int fd = open("/t/locks/copied-up", O_RDWR);
	struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 10};
	pid_t child;

	must(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
	child = fork();
	if (child == 0) {
		struct flock asked = lock, beside = {.l_type = F_WRLCK, .l_start = 20, .l_len = 10};
		int other = open("/t/locks/copied-up", O_RDWR);

		must_fail(fcntl(other, F_SETLK, &lock), EAGAIN);
		must(fcntl(other, F_GETLK, &asked) == 0 && asked.l_type == F_WRLCK && asked.l_pid == getppid());
		must(fcntl(other, F_SETLK, &beside) == 0);
		_exit(0);
	}
	finish(child);
}

static void locks_of_open_files(void)
{
	int first = open(U "ofd", O_RDWR | O_CREAT, 0644), second = open(U "ofd", O_RDWR);
	struct flock lock = {.l_type = F_WRLCK};

	must(first >= 0 && second >= 0 && fcntl(first, F_OFD_SETLK, &lock) == 0);
	must_fail(fcntl(second, F_OFD_SETLK, &lock), EAGAIN);
	must(close(first) == 0 && fcntl(second, F_OFD_SETLK, &lock) == 0);
}

/* Whether the next event is this one, of this name. */
static bool told(int fd, uint32_t mask, const char *name)
{
	static char events[TEXT] __attribute__((aligned(8)));
	static size_t length, at;
	const struct inotify_event *event;

	if (at >= length) {
		ssize_t got = read(fd, events, sizeof(events));
		length = got > 0 ? (size_t)got : 0;
		at = 0;
	}
	if (!length)
		return false;
	event = (const struct inotify_event *)(events + at);
	at += sizeof(*event) + event->len;
	return event->mask == mask && strcmp(event->len ? event->name : "", name) == 0;
}

static void inotify_of_a_directory(void)
{
	int fd = inotify_init1(IN_NONBLOCK);

	must(inotify_add_watch(fd, "/t/watched", IN_CREATE | IN_DELETE | IN_CLOSE_WRITE | IN_MOVE | IN_ATTRIB) > 0);
	put("/t/watched/new", "new\n");
	must(told(fd, IN_CREATE, "new") && told(fd, IN_CLOSE_WRITE, "new"));
	must(chmod("/t/watched/lower", 0600) == 0);
	must(told(fd, IN_ATTRIB, "lower"));
	must(rename("/t/watched/new", "/t/watched/moved") == 0);
	must(told(fd, IN_MOVED_FROM, "new") && told(fd, IN_MOVED_TO, "moved"));
	must(unlink("/t/watched/moved") == 0);
	must(told(fd, IN_DELETE, "moved"));
	must(unlink("/t/watched/lower") == 0);
	must(told(fd, IN_DELETE, "lower"));
}

static void inotify_of_a_file(void)
{
	int fd = inotify_init1(IN_NONBLOCK);

	put(U "watched", "");
	must(inotify_add_watch(fd, U "watched", IN_MODIFY) > 0);
	add(U "watched", "more\n");
	must(told(fd, IN_MODIFY, ""));
}

static void fifo_between_processes(void)
{
	char text[6] = "";
	pid_t child;
	int fd;

	must(mkfifo(U "fifo", 0600) == 0);
	child = fork();
	if (child == 0) {
		fd = open(U "fifo", O_WRONLY);
		_exit(fd >= 0 && write(fd, "hello", 5) == 5 ? 0 : 1);
	}
	fd = open(U "fifo", O_RDONLY);
	must(fd >= 0 && read(fd, text, 5) == 5 && strcmp(text, "hello") == 0);
	finish(child);
}

static void socket_between_processes(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = U "socket"};
	int listening = socket(AF_UNIX, SOCK_STREAM, 0), fd;
	char text[6] = "";
	pid_t child;

	must(bind(listening, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listening, 1) == 0);
	child = fork();
	if (child == 0) {
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		must(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
		_exit(write(fd, "hello", 5) == 5 ? 0 : 1);
	}
	fd = accept(listening, NULL, NULL);
	must(fd >= 0 && read(fd, text, 5) == 5 && strcmp(text, "hello") == 0);
	finish(child);
}

static void made_special_files(void)
{
	struct stat status;
	int fd;

	must(mknod(U "null", S_IFCHR | 0666, makedev(1, 3)) == 0);
	fd = open(U "null", O_WRONLY);
	must(fd >= 0 && write(fd, "gone", 4) == 4);
	must(mknod(U "block", S_IFBLK | 0600, makedev(259, 1048575)) == 0);
	must(stat(U "block", &status) == 0 && major(status.st_rdev) == 259 && minor(status.st_rdev) == 1048575);
}

static void made_links(void)
{
	char target[TEXT], found[TEXT];
	struct stat first, second;

	memset(target, 'a', sizeof(target) - 1);
	target[sizeof(target) - 1] = 0;
	must(symlink(target, U "long") == 0);
	must(readlink(U "long", found, sizeof(found)) == TEXT - 1 && memcmp(found, target, TEXT - 1) == 0);
	put(U "first", "one\n");
	must(link(U "first", U "second") == 0);
	add(U "second", "two\n");
	must(says(U "first", "one\ntwo\n"));
	must(stat(U "first", &first) == 0 && stat(U "second", &second) == 0);
	must(first.st_ino == second.st_ino && first.st_nlink == 2);
}

static void made_with_xattrs(void)
{
	static const unsigned char capability[20] = {1, 0, 0, 2, 1}; /* linux/capability.h: version 2, effective, CAP_CHOWN */

	put(U "xattrs", "");
	must(setxattr(U "xattrs", "user.a", "a", 1, 0) == 0 && has_xattr(U "xattrs", "user.a", "a"));
	must(setxattr(U "xattrs", "trusted.a", "", 0, 0) == 0 && has_xattr(U "xattrs", "trusted.a", ""));
	must(setxattr(U "xattrs", "security.capability", capability, sizeof(capability), 0) == 0);
	must(getxattr(U "xattrs", "security.capability", NULL, 0) == sizeof(capability));
}

static void made_deep(void)
{
	char name[256];
	int fd = open(U, O_RDONLY | O_DIRECTORY);

	memset(name, 'n', 255);
	name[255] = 0;
	for (int level = 0; level < 20; level++) { /* 5,100 bytes: longer than PATH_MAX */
		int next;

		must(mkdirat(fd, name, 0755) == 0);
		next = openat(fd, name, O_RDONLY | O_DIRECTORY);
		must(next >= 0 && close(fd) == 0);
		fd = next;
	}
	must(openat(fd, "bottom", O_WRONLY | O_CREAT, 0644) >= 0);
	must(faccessat(fd, "bottom", F_OK, 0) == 0);
}

static void made_many(void)
{
	char path[64], text[16];

	for (int i = 0; i < SMALL_FILES; i++) {
		(void)snprintf(path, sizeof(path), U "many/%d", i);
		(void)snprintf(text, sizeof(text), "%d\n", i);
		put(path, text);
	}
	for (int i = 0; i < SMALL_FILES; i++) {
		(void)snprintf(path, sizeof(path), U "many/%d", i);
		(void)snprintf(text, sizeof(text), "%d\n", i);
		must(says(path, text) && unlink(path) == 0);
	}
	must(lists(U "many", ""));
}

static void default_acl_is_inherited(void)
{
	must((status_of("/t/acl/default").st_mode & 07777) == 0770);
	put("/t/acl/default/new", "new\n");
	must(getxattr("/t/acl/default/new", "system.posix_acl_access", NULL, 0) > 0);
	must(mkdir("/t/acl/default/sub", 0777) == 0);
	must(getxattr("/t/acl/default/sub", "system.posix_acl_default", NULL, 0) > 0);
	become(5000, 5000);
	must(says("/t/acl/default/new", "new\n"));
}

static void setgid_directory_gives_its_group(void)
{
	become(1000, 1000);
	put("/t/modes/dir-2777/new", "new\n");
	must(status_of("/t/modes/dir-2777/new").st_gid == 3000 && status_of("/t/modes/dir-2777/new").st_uid == 1000);
	must(mkdir("/t/modes/dir-2777/sub", 0755) == 0);
	must(status_of("/t/modes/dir-2777/sub").st_mode == (S_IFDIR | 02755));
}

static void sticky_directory_protects(void)
{
	become(1000, 1000);
	put("/t/modes/dir-1777/mine", "mine\n");
	must_fail(unlink("/t/modes/dir-1777/theirs"), EPERM);
	must_fail(rename("/t/modes/dir-1777/mine", "/t/modes/dir-1777/theirs"), EPERM);
	must(unlink("/t/modes/dir-1777/mine") == 0);
}

static void direct_io(void)
{
	char *block = aligned_alloc(4096, 8192);
	int fd = open(U "direct", O_RDWR | O_CREAT | O_DIRECT, 0644);

	must(block && fd >= 0);
	memset(block, 'd', 8192);
	must(write(fd, block, 8192) == 8192);
	memset(block, 0, 8192);
	must(pread(fd, block, 4096, 4096) == 4096 && block[0] == 'd' && block[4095] == 'd');
}

static void writes_take_space(void)
{
	static char block[MIB];
	struct statfs before, after;
	int fd = open(U "space", O_WRONLY | O_CREAT, 0644);

	memset(block, 's', sizeof(block));
	must(fd >= 0 && statfs(U, &before) == 0);
	for (int i = 0; i < 4; i++)
		must(write(fd, block, sizeof(block)) == sizeof(block));
	must(fsync(fd) == 0 && statfs(U, &after) == 0);
	must((before.f_bfree - after.f_bfree) * (unsigned long long)before.f_bsize >= 4ULL * MIB);
	must(unlink(U "space") == 0 && close(fd) == 0);
}

const struct check upper_checks[] = {
	{"synced", synced},
	{"punched_hole", punched_hole},
	{"punched_hole_in_a_file_of_the_lower", punched_hole_in_a_file_of_the_lower},
	{"allocated", allocated},
	{"temporary_without_a_name", temporary_without_a_name},
	{"flock_between_processes", flock_between_processes},
	{"fcntl_between_processes", fcntl_between_processes},
	{"locks_of_open_files", locks_of_open_files},
	{"inotify_of_a_directory", inotify_of_a_directory},
	{"inotify_of_a_file", inotify_of_a_file},
	{"fifo_between_processes", fifo_between_processes},
	{"socket_between_processes", socket_between_processes},
	{"made_special_files", made_special_files},
	{"made_links", made_links},
	{"made_with_xattrs", made_with_xattrs},
	{"made_deep", made_deep},
	{"made_many", made_many},
	{"default_acl_is_inherited", default_acl_is_inherited},
	{"setgid_directory_gives_its_group", setgid_directory_gives_its_group},
	{"sticky_directory_protects", sticky_directory_protects},
	{"direct_io", direct_io},
	{"writes_take_space", writes_take_space},
	{NULL, NULL},
};
