/* The container's stdin, stdout and stderr as the shim inherited them. */
#ifndef RUNDCTL_SHIM_STREAMS_H
#define RUNDCTL_SHIM_STREAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "backlog.h"
#include "credit.h"

/* A descriptor that is never made non-blocking, because its description may be shared with the user's terminal. */
struct endpoint {
	int fd;		/* -1: closed */
	bool is_socket; /* MSG_DONTWAIT */
	bool may_block; /* a device, or a pipe that could not be reopened: poll first, and then at most PIPE_BUF bytes */
};

/* The host's stdin: read while the guest has credit for it. */
struct source {
	struct endpoint end;
	struct credit credit; /* outstanding: bytes the guest has not acknowledged */
	bool eager;	      /* read before polling: a FIFO opened after its last writer went never reports its end (pipe(7)) */
};

/* stdout or stderr: what came from the guest and has not been written. */
struct sink {
	struct endpoint end;
	struct credit credit; /* outstanding: bytes in the backlog, and those owed */
	struct backlog backlog;
	uint32_t owed; /* bytes that left, and whose credit has not been returned */
	bool ended;    /* the guest sends no more: close when the backlog is out */
	bool refused;  /* the guest was told that nobody reads */
};

/* Takes over a standard descriptor; its number stays occupied, by /dev/null, so that nothing else ever gets it. */
void endpoint_open(struct endpoint *endpoint, int fd, bool writing);
void endpoint_close(struct endpoint *endpoint);
/* As read(2) and write(2), but never waiting: -EAGAIN. */
ssize_t endpoint_read(const struct endpoint *endpoint, void *bytes, size_t size);
ssize_t endpoint_write(const struct endpoint *endpoint, const void *bytes, size_t size);

/* Writes what it can; returns the bytes that went out, which are owed now, or -errno when there is no reader any more. */
ssize_t sink_flush(struct sink *sink);

#endif
