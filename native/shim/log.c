/* A guest says what it likes on its console, and can make QEMU say the same again and again; what is said lies in the host's memory (/run). So the
 * first words are kept, why a QEMU does not start, and the last, why it ended. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	FIRST_SIZE = 32 * 1024,
	LAST_SIZE = 16 * 1024,
	LOG_MAX = FIRST_SIZE + 2 * LAST_SIZE,
	PIECE_SIZE = 4096,
};

/* If the shim does not come to read, words are lost: better than a QEMU that waits. */
int log_pipe(int ends[2])
{
	return pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : 0;
}

/* Nothing depends on the log but words: a full disk does not keep anybody from anything. */
static void put(int log, const char *bytes, size_t size)
{
	if (write(log, bytes, size) < 0)
		return;
}

/* What is between the first words and the last goes. */
static void make_room(int log, off_t size)
{
	char last[LAST_SIZE];
	ssize_t got = pread(log, last, sizeof(last), size - LAST_SIZE);

	if (ftruncate(log, FIRST_SIZE) == 0 && got > 0)
		put(log, last, (size_t)got);
}

static void keep(int log, const char *bytes, size_t size)
{
	struct stat info;

	if (fstat(log, &info) < 0)
		return;
	if (info.st_size + (off_t)size > LOG_MAX)
		make_room(log, info.st_size);
	put(log, bytes, size);
}

void log_take(int log, int *words, int pieces)
{
	char bytes[PIECE_SIZE];
	ssize_t got = 0;

	while (*words >= 0 && pieces-- > 0) {
		got = read(*words, bytes, sizeof(bytes));
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (got > 0) {
			keep(log, bytes, (size_t)got);
			continue;
		}
		close(*words);
		*words = -1;
	}
}
