#include "figures.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "clock.h"

enum {
	NAME_LENGTH_MAX = 64,
	STAT_MAX = 1024,     /* of /proc/PID/stat: 52 numbers and a name */
	IDS_MAX = 512,	     /* of the lines Uid and NSpid: 4 numbers, and one a nested namespace, of which there are 33 at most */
	ARGUMENTS_MAX = 512, /* of /proc/PID/cmdline: the rest is cut off */
	CGROUP_LINES_MAX = 4096,
	CONTENTS_MAX = WIRE_PAYLOAD_MAX - WIRE_FILES_MAX * (int)sizeof(struct wire_file), /* so that each file has at least its head */
};

/* Where an answer grows. What does not fit is not begun. */
struct answer {
	uint8_t *bytes;
	size_t size;
};

static size_t room(const struct answer *answer)
{
	return WIRE_PAYLOAD_MAX - answer->size;
}

static void append(struct answer *answer, const void *bytes, size_t size)
{
	memcpy(answer->bytes + answer->size, bytes, size);
	answer->size += size;
}

static int open_file(int directory, const char *name)
{
	return openat(directory, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
}

/* At most `size` bytes of a file; -errno. */
static ssize_t read_some(int directory, const char *name, void *bytes, size_t size)
{
	cleanup_close int fd = open_file(directory, name);
	size_t done = 0;
	ssize_t got = 1;

	if (fd < 0)
		return -errno;
	while (done < size && got > 0) {
		got = read(fd, (uint8_t *)bytes + done, size - done);
		if (got > 0)
			done += (size_t)got;
	}
	return got < 0 ? -errno : (ssize_t)done;
}

/* READ */

/* Never a path: what lies above the container's cgroup, or below it, is not for the asking. */
static bool is_plain(const char *name)
{
	return name[0] && name[0] != '.' && strlen(name) <= NAME_LENGTH_MAX && !strchr(name, '/');
}

static void append_file(struct answer *answer, int directory, const char *name)
{
	struct wire_file file = {0};
	size_t start = answer->size + sizeof(file);
	size_t most = start < CONTENTS_MAX ? CONTENTS_MAX - start : 0;
	ssize_t got = read_some(directory, name, answer->bytes + start, most);

	if (got < 0)
		file.error = (int32_t)-got;
	else if ((size_t)got == most)
		file.error = EFBIG; /* as far as can be told */
	else
		file.size = (uint32_t)got;
	append(answer, &file, sizeof(file));
	answer->size += file.size;
}

ssize_t figures_read(int directory, const uint8_t *names, size_t size, uint8_t bytes[WIRE_PAYLOAD_MAX])
{
	struct answer answer = {.bytes = bytes};
	struct wire_result result = {0};

	if (!size || names[size - 1] != '\0')
		return -EPROTO;
	for (size_t at = 0; at < size; at += strlen((const char *)names + at) + 1)
		if (!is_plain((const char *)names + at) || ++result.index > WIRE_FILES_MAX)
			return -EINVAL;
	if (directory < 0)
		return -ENOENT;
	append(&answer, &result, sizeof(result));
	for (size_t at = 0; at < size; at += strlen((const char *)names + at) + 1)
		append_file(&answer, directory, (const char *)names + at);
	return (ssize_t)answer.size;
}

/* PROCESSES */

static void append_string(struct answer *answer, const void *bytes, ssize_t size)
{
	uint32_t length = size < 0 ? 0 : (uint32_t)size;

	append(answer, &length, sizeof(length));
	append(answer, bytes, length);
}

/* The line of cgroup v2, "0::/c1/below", among those of other hierarchies that a container may have mounted. */
static bool is_member(int process, uint16_t container)
{
	char lines[CGROUP_LINES_MAX + 1], own[16];
	ssize_t got = read_some(process, "cgroup", lines, CGROUP_LINES_MAX);
	size_t length = (size_t)snprintf(own, sizeof(own), "0::/c%u", container);
	const char *line = lines;

	lines[got < 0 ? 0 : got] = '\0';
	while (line && strncmp(line, "0::", 3) != 0) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return line && strncmp(line, own, length) == 0 && (line[length] == '\n' || line[length] == '/');
}

/* The lines that say who it is: Uid, and its number in every namespace. A line before them may be of any length (Groups). */
static size_t read_ids(int process, char ids[IDS_MAX])
{
	int fd = open_file(process, "status");
	FILE *status = fd < 0 ? NULL : fdopen(fd, "r");
	char part[IDS_MAX / 2];
	bool begins = true;
	size_t size = 0;

	while (status && fgets(part, sizeof(part), status)) {
		size_t length = strlen(part);
		bool wanted = begins && (strncmp(part, "Uid:\t", 5) == 0 || strncmp(part, "NSpid:\t", 7) == 0);
		if (wanted && size + length < IDS_MAX)
			size = (size_t)(stpcpy(ids + size, part) - ids);
		begins = length && part[length - 1] == '\n';
	}
	if (status)
		fclose(status);
	else
		close_fd(&fd);
	return size;
}

/* True if it is in the answer, or there is nothing to be said about it; false if there is no room. */
static bool append_process(struct answer *answer, uint32_t *count, int proc, const char *name, uint16_t container)
{
	cleanup_close int process = openat(proc, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char stat[STAT_MAX], ids[IDS_MAX], arguments[ARGUMENTS_MAX];

	if (process < 0 || !is_member(process, container))
		return true;
	ssize_t length = read_some(process, "stat", stat, sizeof(stat));
	if (length <= 0)
		return true; /* it has ended */
	if (room(answer) < sizeof(stat) + sizeof(ids) + sizeof(arguments) + 3 * sizeof(uint32_t))
		return false;
	append_string(answer, stat, length);
	append_string(answer, ids, (ssize_t)read_ids(process, ids));
	append_string(answer, arguments, read_some(process, "cmdline", arguments, sizeof(arguments)));
	(*count)++;
	return true;
}

static DIR *open_directory(int proc)
{
	cleanup_close int own = openat(proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = own < 0 ? NULL : fdopendir(own);

	if (directory)
		own = -1;
	return directory;
}

ssize_t figures_processes(int proc, uint16_t container, const uint8_t *payload, size_t size, uint8_t bytes[WIRE_PAYLOAD_MAX])
{
	cleanup_closedir DIR *directory = open_directory(proc);
	struct wire_result result = {0};
	struct wire_processes head = {.uptime_ns = (uint64_t)clock_ns(CLOCK_BOOTTIME)};
	struct answer answer = {.bytes = bytes, .size = sizeof(result) + sizeof(head)};
	struct dirent *entry;
	uint64_t from;

	if (size != sizeof(from))
		return -EPROTO;
	if (!directory)
		return -errno;
	memcpy(&from, payload, sizeof(from));
	/* procfs keeps its places by pid (fs/proc/base.c, proc_pid_readdir): what ends meanwhile moves nothing. */
	if (from)
		seekdir(directory, (long)from);
	long here = telldir(directory);
	while ((entry = readdir(directory))) {
		bool is_process = entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
		if (is_process && !append_process(&answer, &result.index, proc, entry->d_name, container)) {
			head.next = (uint64_t)here;
			break;
		}
		here = telldir(directory);
	}
	memcpy(bytes, &result, sizeof(result));
	memcpy(bytes + sizeof(result), &head, sizeof(head));
	return (ssize_t)answer.size;
}
