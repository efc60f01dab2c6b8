/* Checks that change what the lower has: each has a directory or file of its own below /t/overlay, so that none sees another's traces. */
#define _GNU_SOURCE
#include "rootfs_probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define O "/t/overlay/"
#define LOWER "lower\n" /* in every small file */
#define MTIME 1234567890
#define MTIME_NS 123456789

/* What copying up must keep; O_RDONLY opens see what any other reader sees. */
static bool is_intact(const char *path)
{
	struct stat status = status_of(path);

	return has_pattern(path, PATTERN_SIZE) && status.st_size == PATTERN_SIZE && status.st_mode == (S_IFREG | 0640) && status.st_uid == 1001 &&
	       status.st_gid == 1002 && status.st_mtim.tv_sec == MTIME && status.st_mtim.tv_nsec == MTIME_NS && has_xattr(path, "user.kept", "kept");
}

/* With room for a list: asked for the size alone, overlayfs counts what it then leaves out. */
static bool has_no_xattrs(const char *path)
{
	char list[TEXT];

	return llistxattr(path, list, sizeof(list)) == 0;
}

static void deleted_file(void)
{
	must(says(O "deleted/file", LOWER));
	must(unlink(O "deleted/file") == 0);
	must(is_gone(O "deleted/file"));
	must_fail(open(O "deleted/file", O_RDONLY), ENOENT);
	must_fail(unlink(O "deleted/file"), ENOENT);
	must(lists(O "deleted", "other"));
}

static void deleted_and_made_again(void)
{
	struct stat status;

	must(unlink(O "again/file") == 0);
	put(O "again/file", "new\n");
	must(says(O "again/file", "new\n"));
	status = status_of(O "again/file");
	must(status.st_mode == (S_IFREG | 0644) && status.st_uid == 0 && status.st_nlink == 1);
	must(has_no_xattrs(O "again/file")); /* the old one had some */
	must(lists(O "again", "file"));
}

static void deleted_and_made_as_another_kind(void)
{
	must(unlink(O "kinds/file") == 0);
	must(mkdir(O "kinds/file", 0755) == 0);
	must(lists(O "kinds/file", ""));
	must(rmdir(O "kinds/file") == 0);
	must(symlink("nowhere", O "kinds/file") == 0);
	must(S_ISLNK(status_of(O "kinds/file").st_mode));
	must(unlink(O "kinds/file") == 0);
	must(is_gone(O "kinds/file"));
	must(unlink(O "kinds/directory/inside") == 0);
	must(rmdir(O "kinds/directory") == 0);
	put(O "kinds/directory", "a file now\n");
	must(says(O "kinds/directory", "a file now\n"));
}

static void directory_that_is_not_empty(void)
{
	must_fail(rmdir(O "not-empty"), ENOTEMPTY);
	must(unlink(O "not-empty/a") == 0);
	must_fail(rmdir(O "not-empty"), ENOTEMPTY);
	must(unlink(O "not-empty/b") == 0);
	must(lists(O "not-empty", ""));
	must(rmdir(O "not-empty") == 0);
	must(is_gone(O "not-empty"));
}

static void opaque_directory(void)
{
	must(unlink(O "opaque/a") == 0 && unlink(O "opaque/sub/b") == 0);
	must(rmdir(O "opaque/sub") == 0 && rmdir(O "opaque") == 0);
	must(is_gone(O "opaque"));
	must(mkdir(O "opaque", 0711) == 0);
	must(lists(O "opaque", ""));
	must_fail(open(O "opaque/a", O_RDONLY), ENOENT);
	must_fail(open(O "opaque/sub/b", O_RDONLY), ENOENT);
	must(status_of(O "opaque").st_mode == (S_IFDIR | 0711));
	must(mkdir(O "opaque/sub", 0755) == 0);
	must(lists(O "opaque/sub", ""));
	must(has_no_xattrs(O "opaque")); /* overlayfs's own marks are nobody's business */
}

/* As rm -r does it: the list is read on while its entries go. */
static void deleted_while_listed(void)
{
	DIR *stream = opendir(O "many");
	struct dirent *entry;
	int count = 0;

	must(stream);
	while ((entry = readdir(stream)))
		if (entry->d_name[0] != '.') {
			must(unlinkat(dirfd(stream), entry->d_name, 0) == 0);
			count++;
		}
	must(count == 300);
	rewinddir(stream);
	must((entry = readdir(stream)) && (entry = readdir(stream)) && !readdir(stream)); /* `.` and `..` */
	must(rmdir(O "many") == 0);
}

static void renamed_over_a_file(void)
{
	put(O "over/new", "new\n");
	must(rename(O "over/new", O "over/file") == 0);
	must(says(O "over/file", "new\n"));
	must(lists(O "over", "file"));
	must(has_no_xattrs(O "over/file"));
}

static void renamed_file(void)
{
	must(rename(O "rename/file", O "rename/to") == 0);
	must(is_intact(O "rename/to"));
	must(is_gone(O "rename/file"));
	must(lists(O "rename", "to"));
	put(O "rename/file", "new\n");
	must(rename(O "rename/to", O "rename/file") == 0);
	must(is_intact(O "rename/file"));
}

static void renamed_directory(void)
{
	must(rename(O "from", O "to") == 0);
	must(is_gone(O "from"));
	must(lists(O "to", "a sub"));
	must(says(O "to/a", LOWER) && says(O "to/sub/b", LOWER));
	must(mkdir(O "from", 0755) == 0);
	must(lists(O "from", ""));
	must(rename(O "to", O "from/deeper") == 0);
	must(says(O "from/deeper/sub/b", LOWER));
	add(O "from/deeper/sub/b", "more\n");
	must(says(O "from/deeper/sub/b", LOWER "more\n"));
	must(unlink(O "from/deeper/a") == 0);
	must(lists(O "from/deeper", "sub"));
	must(chdir(O "from/deeper/sub") == 0 && chdir("..") == 0 && access("sub/b", F_OK) == 0);
}

static void renamed_directory_over_an_empty_one(void)
{
	must(mkdir(O "empty-target", 0755) == 0);
	must(rename(O "full", O "empty-target") == 0);
	must(lists(O "empty-target", "a"));
	must_fail(rename(O "from", O "over"), ENOTEMPTY);
}

static void renames_with_flags(void)
{
	must_fail(renameat2(AT_FDCWD, O "flags/a", AT_FDCWD, O "flags/b", RENAME_NOREPLACE), EEXIST);
	must(renameat2(AT_FDCWD, O "flags/a", AT_FDCWD, O "flags/b", RENAME_EXCHANGE) == 0);
	must(says(O "flags/a", "b\n") && says(O "flags/b", "a\n"));
	must(renameat2(AT_FDCWD, O "flags/a", AT_FDCWD, O "flags/c", RENAME_NOREPLACE) == 0);
	must(lists(O "flags", "b c"));
}

static void appended(void)
{
	struct stat status;
	int fd = open(O "append", O_WRONLY | O_APPEND);
	char text[6] = "";

	must(fd >= 0 && write(fd, "12345", 5) == 5 && close(fd) == 0);
	status = status_of(O "append");
	must(status.st_size == PATTERN_SIZE + 5 && status.st_uid == 1001 && (status.st_mode & 07777) == 0640);
	fd = open(O "append", O_RDONLY);
	must(pread(fd, text, 5, PATTERN_SIZE) == 5 && strcmp(text, "12345") == 0);
	must(truncate(O "append", PATTERN_SIZE) == 0);
	must(has_pattern(O "append", PATTERN_SIZE));
	must(has_xattr(O "append", "user.kept", "kept"));
}

/* Not zeroes, which take time and the upper's room. */
static void appended_after_a_hole(void)
{
	const off_t size = 8 << 20, head = 8;
	char text[16] = "", zero = 1;
	int fd;

	must(status_of(O "sparse").st_size == size);
	add(O "sparse", "added\n");
	must(status_of(O "sparse").st_size == size + 6);
	fd = open(O "sparse", O_RDONLY);
	must(fd >= 0);
	must(pread(fd, text, sizeof(text), size - head) == head + 6 && strcmp(text, "the end\nadded\n") == 0);
	must(pread(fd, &zero, 1, size / 2) == 1 && zero == 0);
	must(fsync(fd) == 0); /* until then ext4 has only reserved its blocks */
	must(status_of(O "sparse").st_blocks * 512 < size / 8);
}

static void written_in_the_middle(void)
{
	int fd = open(O "middle", O_RDWR);
	uint8_t byte = (uint8_t)(255 - pattern(150000));

	must(fd >= 0 && pwrite(fd, &byte, 1, 150000) == 1);
	must(!has_pattern(O "middle", PATTERN_SIZE));
	byte = pattern(150000);
	must(pwrite(fd, &byte, 1, 150000) == 1);
	must(has_pattern(O "middle", PATTERN_SIZE));
}

static void written_through_a_mapping(void)
{
	int fd = open(O "mapped", O_RDWR);
	uint8_t *memory = mmap(NULL, PATTERN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), byte;

	must(fd >= 0 && memory != MAP_FAILED);
	memory[150000] ^= 0xff;
	must(pread(fd, &byte, 1, 150000) == 1 && byte == 255 - pattern(150000));
	must(msync(memory, PATTERN_SIZE, MS_SYNC) == 0);
	memory[150000] ^= 0xff;
	must(munmap(memory, PATTERN_SIZE) == 0);
	must(has_pattern(O "mapped", PATTERN_SIZE));
}

static void truncated(void)
{
	must(truncate(O "truncate", 1000) == 0);
	must(has_pattern(O "truncate", 1000));
	must(truncate(O "truncate", 0) == 0 && says(O "truncate", ""));
	must(truncate(O "grown", PATTERN_SIZE + 100000) == 0);
	must(status_of(O "grown").st_size == PATTERN_SIZE + 100000);
	must(truncate(O "grown", PATTERN_SIZE) == 0 && has_pattern(O "grown", PATTERN_SIZE));
	must(close(open(O "emptied", O_WRONLY | O_TRUNC)) == 0);
	must(says(O "emptied", ""));
	must((status_of(O "emptied").st_mode & 07777) == 0640 && status_of(O "emptied").st_uid == 1001);
}

static void chmod_keeps_the_rest(void)
{
	must(is_intact(O "chmod"));
	must(chmod(O "chmod", 04711) == 0 && status_of(O "chmod").st_mode == (S_IFREG | 04711));
	must(chmod(O "chmod", 0640) == 0 && is_intact(O "chmod"));
}

static void chown_keeps_the_rest(void)
{
	must(chown(O "chown", 70000, 4294967290U) == 0);
	must(status_of(O "chown").st_uid == 70000 && status_of(O "chown").st_gid == 4294967290U);
	must(chown(O "chown", 1001, 1002) == 0 && is_intact(O "chown"));
	must(lchown(O "chown-link", 5, 6) == 0 && status_of(O "chown-link").st_uid == 5);
	must(says(O "chown-link", LOWER) && status_of(O "chown-link-target").st_uid == 0);
}

static void times_keep_the_rest(void)
{
	const struct timespec times[2] = {{1, 2}, {4000000000, 999999999}};
	const struct timespec before[2] = {{1, 2}, {MTIME, MTIME_NS}};

	must(utimensat(AT_FDCWD, O "times", times, 0) == 0);
	must(status_of(O "times").st_mtim.tv_sec == 4000000000 && status_of(O "times").st_mtim.tv_nsec == 999999999);
	must(utimensat(AT_FDCWD, O "times", before, 0) == 0 && is_intact(O "times"));
}

static void xattrs_keep_the_rest(void)
{
	must(setxattr(O "xattrs", "user.new", "new", 3, 0) == 0);
	must(has_xattr(O "xattrs", "user.new", "new") && is_intact(O "xattrs"));
	must(setxattr(O "xattrs", "user.kept", "other", 5, XATTR_REPLACE) == 0);
	must(has_xattr(O "xattrs", "user.kept", "other"));
	must(removexattr(O "xattrs", "user.kept") == 0);
	must_fail(getxattr(O "xattrs", "user.kept", NULL, 0), ENODATA);
	must(setxattr(O "xattrs-directory", "user.new", "new", 3, 0) == 0);
	must(has_xattr(O "xattrs-directory", "user.new", "new") && has_xattr(O "xattrs-directory", "user.kept", "kept"));
	must(lists(O "xattrs-directory", "inside"));
}

static void trusted_xattrs_are_copied_up(void)
{
	must(has_xattr(O "trusted", "trusted.kept", "kept"));
	add(O "trusted", "more\n");
	must(has_xattr(O "trusted", "trusted.kept", "kept"));
}

static void chmod_keeps_a_capability(void)
{
	ssize_t size = getxattr(O "capable", "security.capability", NULL, 0);

	must(size == 20 && chmod(O "capable", 0700) == 0);
	must(getxattr(O "capable", "security.capability", NULL, 0) == size);
}

static void writing_drops_a_capability(void)
{
	must(getxattr(O "capable-written", "security.capability", NULL, 0) == 20);
	add(O "capable-written", "x");
	must_fail(getxattr(O "capable-written", "security.capability", NULL, 0), ENODATA);
}

static void acl_is_copied_up(void)
{
	char before[100], after[100];
	ssize_t size = getxattr(O "acl", "system.posix_acl_access", before, sizeof(before));

	must(size > 0);
	add(O "acl", "more\n");
	must(getxattr(O "acl", "system.posix_acl_access", after, sizeof(after)) == size);
	must(memcmp(before, after, (size_t)size) == 0);
	become(5000, 5000);
	must(says(O "acl", LOWER "more\n"));
}

static void copied_up_special_files(void)
{
	must(chmod(O "fifo", 0604) == 0 && status_of(O "fifo").st_mode == (S_IFIFO | 0604));
	must(chmod(O "device", 0604) == 0 && status_of(O "device").st_mode == (S_IFCHR | 0604));
	must(status_of(O "device").st_rdev == 0x103);
	must(rename(O "link", O "link-renamed") == 0 && readlink(O "link-renamed", (char[20]){0}, 20) == 7);
}

static void linked(void)
{
	struct stat first, second;

	must(link(O "linked", O "linked-too") == 0);
	first = status_of(O "linked");
	second = status_of(O "linked-too");
	must(first.st_nlink == 2 && second.st_nlink == 2);
	must(is_intact(O "linked-too"));
	must(chmod(O "linked", 0600) == 0 && status_of(O "linked-too").st_mode == (S_IFREG | 0600));
	must(unlink(O "linked") == 0 && status_of(O "linked-too").st_nlink == 1);
	must(has_pattern(O "linked-too", PATTERN_SIZE));
}

static void linked_names_have_one_inode(void)
{
	struct stat first, second;

	must(link(O "linked-inode", O "linked-inode-too") == 0);
	first = status_of(O "linked-inode");
	second = status_of(O "linked-inode-too");
	must(first.st_ino == second.st_ino && first.st_dev == second.st_dev);
}

/* Names of one inode are one file: what is written by one name is read by the other. */
static void hard_links_stay_one_file(void)
{
	must(status_of(O "hard/a").st_ino == status_of(O "hard/b").st_ino);
	put(O "hard/a", "new\n");
	must(says(O "hard/b", "new\n"));
}

static void inode_stays_when_copied_up(void)
{
	struct stat before = status_of(O "inode");

	add(O "inode", "more\n");
	must(status_of(O "inode").st_ino == before.st_ino);
	must(status_of(O "inode").st_dev == before.st_dev);
}

static void open_descriptor_sees_what_is_written_later(void)
{
	char text[6] = "";
	int fd = open(O "open", O_RDONLY);

	must(fd >= 0);
	put(O "open", "later\n");
	must(pread(fd, text, 5, 0) == 5 && strcmp(text, "later") == 0);
}

static void unlinked_while_open(void)
{
	char text[7] = "";
	int fd = open(O "unlinked", O_RDONLY);
	struct stat status;

	must(fd >= 0 && unlink(O "unlinked") == 0);
	must(pread(fd, text, 6, 0) == 6 && strcmp(text, LOWER) == 0);
	must(fstat(fd, &status) == 0 && status.st_size == 6);
	must(is_gone(O "unlinked"));
	fd = open(O "unlinked-rw", O_RDWR);
	must(fd >= 0 && unlink(O "unlinked-rw") == 0);
	must(pwrite(fd, "upper!", 6, 0) == 6 && pread(fd, text, 6, 0) == 6 && strcmp(text, "upper!") == 0);
	must(fstat(fd, &status) == 0 && status.st_nlink == 0);
}

static void odd_names_change_too(void)
{
	must(says("/t/names/\xff\xfe", "invalid UTF-8\n"));
	add("/t/names/\xff\xfe", "more\n");
	must(says("/t/names/\xff\xfe", "invalid UTF-8\nmore\n"));
	must(unlink("/t/names/new\nline") == 0 && is_gone("/t/names/new\nline"));
	put("/t/names/\x80new\n", "new\n");
	must(says("/t/names/\x80new\n", "new\n"));
}

const struct check overlay_checks[] = {
	{"deleted_file", deleted_file},
	{"deleted_and_made_again", deleted_and_made_again},
	{"deleted_and_made_as_another_kind", deleted_and_made_as_another_kind},
	{"directory_that_is_not_empty", directory_that_is_not_empty},
	{"opaque_directory", opaque_directory},
	{"deleted_while_listed", deleted_while_listed},
	{"renamed_over_a_file", renamed_over_a_file},
	{"renamed_file", renamed_file},
	{"renamed_directory", renamed_directory},
	{"renamed_directory_over_an_empty_one", renamed_directory_over_an_empty_one},
	{"renames_with_flags", renames_with_flags},
	{"appended", appended},
	{"appended_after_a_hole", appended_after_a_hole},
	{"written_in_the_middle", written_in_the_middle},
	{"written_through_a_mapping", written_through_a_mapping},
	{"truncated", truncated},
	{"chmod_keeps_the_rest", chmod_keeps_the_rest},
	{"chown_keeps_the_rest", chown_keeps_the_rest},
	{"times_keep_the_rest", times_keep_the_rest},
	{"xattrs_keep_the_rest", xattrs_keep_the_rest},
	{"trusted_xattrs_are_copied_up", trusted_xattrs_are_copied_up},
	{"chmod_keeps_a_capability", chmod_keeps_a_capability},
	{"writing_drops_a_capability", writing_drops_a_capability},
	{"acl_is_copied_up", acl_is_copied_up},
	{"copied_up_special_files", copied_up_special_files},
	{"linked", linked},
	{"linked_names_have_one_inode", linked_names_have_one_inode},
	{"hard_links_stay_one_file", hard_links_stay_one_file},
	{"inode_stays_when_copied_up", inode_stays_when_copied_up},
	{"open_descriptor_sees_what_is_written_later", open_descriptor_sees_what_is_written_later},
	{"unlinked_while_open", unlinked_while_open},
	{"odd_names_change_too", odd_names_change_too},
	{NULL, NULL},
};
