/* A guest's own copy of its template's memory, where that cannot be mapped copy-on-write: by the shim, so that it is the container's cgroup
 * that is charged for it, and while QEMU starts. */
#include "memory.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 16 * 1024, PAGE = 4096 }; /* the shim stays: no more of its memory than that */

static bool is_zero(const char *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

static int write_at(int to, const char *bytes, size_t size, off_t offset)
{
	while (size) {
		ssize_t put = pwrite(to, bytes, size, offset);

		if (put < 0 && errno != EINTR)
			return -errno;
		if (put > 0) {
			bytes += put;
			size -= (size_t)put;
			offset += put;
		}
	}
	return 0;
}

/* Runs of pages that are not zero, each by one write. Files of memory are whole pages. */
static int write_pages(int to, const char *bytes, size_t size, off_t offset)
{
	size_t start = 0;
	int error = 0;

	for (size_t at = 0; at < size && !error; at += PAGE) {
		if (!is_zero(bytes + at))
			continue;
		error = write_at(to, bytes + start, at - start, offset + (off_t)start);
		start = at + PAGE;
	}
	return error || start >= size ? error : write_at(to, bytes + start, size - start, offset + (off_t)start);
}

static int copy_range(int from, int to, off_t start, off_t end)
{
	char bytes[CHUNK];
	int error = 0;

	while (start < end && !error) {
		size_t wanted = end - start < CHUNK ? (size_t)(end - start) : CHUNK;
		ssize_t got = pread(from, bytes, wanted, start);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || got % PAGE)
			return got < 0 ? -errno : -EIO;
		error = write_pages(to, bytes, (size_t)got, start);
		start += got;
	}
	return error;
}

int memory_copy(int from, int to)
{
	off_t start = 0, end;
	int error = 0;

	while (!error && (start = lseek(from, start, SEEK_DATA)) >= 0) {
		end = lseek(from, start, SEEK_HOLE);
		if (end < 0)
			return -errno;
		error = copy_range(from, to, start, end);
		start = end;
	}
	return error || errno == ENXIO ? error : -errno;
}
