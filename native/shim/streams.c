#include "streams.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"

/* A description of our own of the same pipe or terminal: -1 when there is none to be had. */
static int reopen(int fd, bool writing)
{
	char path[32];

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, (writing ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* Reopening must not give rights that the descriptor itself has not. */
static bool is_usable(int fd, bool writing)
{
	int mode = fcntl(fd, F_GETFL);

	return mode >= 0 && (mode & O_ACCMODE) != (writing ? O_RDONLY : O_WRONLY);
}

static int open_own(struct endpoint *endpoint, int fd, bool writing)
{
	struct stat info;
	int own = -1;

	if (fstat(fd, &info) < 0 || !is_usable(fd, writing))
		return -1;
	endpoint->is_socket = S_ISSOCK(info.st_mode);
	if (S_ISFIFO(info.st_mode) || (S_ISCHR(info.st_mode) && isatty(fd))) {
		own = reopen(fd, writing);
		if (own >= 0 || errno == ENXIO) /* the latter: a FIFO that nobody reads */
			return own;
	}
	endpoint->may_block = S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode);
	return fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
}

void endpoint_open(struct endpoint *endpoint, int fd, bool writing)
{
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	*endpoint = (struct endpoint){.fd = -1};
	endpoint->fd = open_own(endpoint, fd, writing);
	if (null < 0 || dup2(null, fd) < 0)
		close(fd);
}

void endpoint_close(struct endpoint *endpoint)
{
	if (endpoint->fd >= 0)
		close(endpoint->fd);
	endpoint->fd = -1;
}

static bool is_ready(int fd, short events)
{
	struct pollfd poller = {.fd = fd, .events = events};

	return poll(&poller, 1, 0) == 1;
}

ssize_t endpoint_read(const struct endpoint *endpoint, void *bytes, size_t size)
{
	ssize_t got;

	if (endpoint->may_block && !is_ready(endpoint->fd, POLLIN))
		return -EAGAIN;
	do
		got = endpoint->is_socket ? recv(endpoint->fd, bytes, size, MSG_DONTWAIT) : read(endpoint->fd, bytes, size);
	while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got;
}

ssize_t endpoint_write(const struct endpoint *endpoint, const void *bytes, size_t size)
{
	ssize_t put;

	if (endpoint->may_block) {
		if (!is_ready(endpoint->fd, POLLOUT))
			return -EAGAIN;
		size = size > PIPE_BUF ? PIPE_BUF : size;
	}
	do
		put = endpoint->is_socket ? send(endpoint->fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) : write(endpoint->fd, bytes, size);
	while (put < 0 && errno == EINTR);
	return put < 0 ? -errno : put;
}

ssize_t sink_flush(struct sink *sink)
{
	ssize_t total = 0;

	while (sink->backlog.size) {
		ssize_t put = endpoint_write(&sink->end, backlog_head(&sink->backlog), sink->backlog.size);

		if (put == -EAGAIN)
			return total;
		if (put <= 0)
			return put < 0 ? put : -EIO;
		backlog_consume(&sink->backlog, (size_t)put);
		sink->owed += (uint32_t)put;
		total += put;
	}
	return total;
}
