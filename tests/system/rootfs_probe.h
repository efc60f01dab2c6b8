/* What the probe's parts share: a check ends its own process at the first thing that is not as it should be. */
#ifndef ROOTFS_PROBE_H
#define ROOTFS_PROBE_H

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

enum {
	PATTERN_SIZE = 300001, /* of the files with pattern(), which rootfs_data.py writes */
	BIG_DIRECTORY = 10000,
	TEXT = 4096,
};

struct check {
	const char *name;
	void (*run)(void);
};

extern const struct check lower_checks[], overlay_checks[], upper_checks[]; /* each ends with a name of NULL */

/* Ends the check: `text` is what was expected, errno why it did not come. */
_Noreturn void wrong(const char *where, const char *text);
#define must(expression) (errno = 0, (expression) ? (void)0 : wrong(__func__, #expression))
#define must_fail(expression, error) must((expression) < 0 && errno == (error))

uint8_t pattern(size_t offset);
bool has_pattern(const char *path, size_t size);      /* all of it, by read(2) */
bool says(const char *path, const char *text);	      /* exactly this */
bool lists(const char *directory, const char *names); /* these, sorted, separated by spaces, and no others */
int not_dots(const struct dirent *entry);
bool is_gone(const char *path); /* neither by name nor in the list of its directory */
bool has_xattr(const char *path, const char *name, const char *value);
struct stat status_of(const char *path);		/* by lstat(2) */
void put(const char *path, const char *text);		/* made, or emptied before */
void add(const char *path, const char *text);		/* O_APPEND */
void become(uid_t user, gid_t group);			/* and nobody else: no groups, no capabilities */
int exit_of(const char *program, const char *argument); /* its exit code */
void finish(pid_t child);				/* must have ended with 0 */
uint32_t crc(const char *path);				/* as zlib's crc32 */
uint32_t crc_at(int directory, const char *name);
void manifest(const char *directory);

#endif
