/* One end of a framed conversation (native/PROTOCOL.md) over a non-blocking descriptor: a reader that joins frames into
 * messages, and a queue of messages to write in which control overtakes data. Shared by shim and agent. */
#ifndef RUNDCTL_FRAMING_H
#define RUNDCTL_FRAMING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cleanup.h"
#include "wire.h"

/* A whole message. `payload` belongs to the connection and is valid until the next call of conn_next or conn_close. */
struct message {
	struct wire_header head; /* of its first frame, without WIRE_MORE; head.size is that frame's only */
	const uint8_t *payload;
	size_t size; /* bytes of payload of all its frames */
};

struct outgoing; /* one queued message, already cut into frames */

struct queue {
	struct outgoing *first;
	struct outgoing *last;
	size_t size; /* bytes not yet written */
};

struct conn {
	int fd;		    /* -1: closed */
	size_t message_max; /* a longer message is a violation; WIRE_PAYLOAD_MAX or less means: no WIRE_MORE at all */
	bool greeted;	    /* the peer's HELLO has come and was right */
	uint16_t peer_role; /* of that HELLO */

	uint8_t *input; /* bytes read and not yet parsed; freed when there are none */
	size_t input_start;
	size_t input_size;
	size_t input_capacity;

	struct wire_header joining_head; /* of the message being joined */
	bool joining;
	uint8_t *joined;
	size_t joined_size;
	size_t joined_capacity;
	bool joined_delivered; /* `joined` is in the caller's hands until the next conn_next */
	size_t delivered;      /* bytes of `input` in the caller's hands until then */

	struct outgoing *writing; /* partly written: nothing may overtake it */
	struct queue control;
	struct queue ordered; /* DATA, CLOSE, EXITED: they keep their order */
};

enum conn_read_result {
	CONN_AGAIN = 0,	 /* nothing more to read now */
	CONN_READ = 1,	 /* something was read: call conn_next until it returns 0, then conn_read again */
	CONN_CLOSED = 2, /* end of file */
};

/* Takes over `fd` and makes it non-blocking. -errno when that fails. */
int conn_open(struct conn *conn, int fd, size_t message_max);

/* Closes the descriptor and forgets what was queued or joined. */
void conn_close(struct conn *conn);

/* Reads once. Returns enum conn_read_result or -errno. */
int conn_read(struct conn *conn);

/* Takes the next whole message out of what was read: 1, or 0 when there is none, or -EPROTO for a violation (no HELLO first,
 * oversized frame, foreign frame within a message), -EPROTONOSUPPORT for another version, -EMSGSIZE, -ENOMEM.
 * HELLO messages are checked and noted, and returned as well. */
int conn_next(struct conn *conn, struct message *message);

/* Queues a message: `head` gives type, flags, container, process and tag; the payload is the concatenation of `parts`, cut into
 * frames. Nothing is written before conn_flush. -ENOMEM, -EMSGSIZE. */
int conn_send_parts(struct conn *conn, const struct wire_header *head, const struct iovec *parts, size_t count);

/* The same with the payload in one piece. */
int conn_send(struct conn *conn, const struct wire_header *head, const void *payload, size_t size);

/* Queues HELLO, which has to be the first message. */
int conn_send_hello(struct conn *conn, enum wire_role role);

/* Queues the RESULT of `request` (addressing and tag are taken from it). `detail` may be NULL. */
int conn_send_result(struct conn *conn, const struct wire_header *request, int error, uint32_t index, const char *detail);

/* Writes what it can: 0 when all is written or the descriptor is full, or -errno (-EPIPE ...). -ENOMEM: the kernel had no memory to
 * take it just now; nothing is lost, call again in a while. */
int conn_flush(struct conn *conn);

/* Drops what waits to be written: nobody will read it, and the descriptor would be polled for it without end. */
void conn_drop_output(struct conn *conn);

/* Whether something waits to be written, so whether to poll for POLLOUT. */
static inline bool conn_pending(const struct conn *conn)
{
	return conn->writing || conn->control.first || conn->ordered.first;
}

/* Bytes that wait to be written. */
size_t conn_queued(const struct conn *conn);

#endif
