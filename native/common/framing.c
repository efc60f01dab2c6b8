#include "framing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	INPUT_MAX = WIRE_HEADER_SIZE + WIRE_PAYLOAD_MAX,
	INPUT_MIN = 4096,
	WRITE_SMALL = 4096, /* a page */
};

struct outgoing {
	struct outgoing *next;
	size_t size; /* of `bytes` */
	size_t done; /* of them, written */
	uint8_t bytes[];
};

int conn_open(struct conn *conn, int fd, size_t message_max)
{
	int flags = fcntl(fd, F_GETFL);

	*conn = (struct conn){.fd = fd, .message_max = message_max};
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

static void queue_clear(struct queue *queue)
{
	while (queue->first) {
		struct outgoing *next = queue->first->next;

		free(queue->first);
		queue->first = next;
	}
	*queue = (struct queue){0};
}

void conn_drop_output(struct conn *conn)
{
	free(conn->writing);
	conn->writing = NULL;
	queue_clear(&conn->control);
	queue_clear(&conn->ordered);
}

void conn_close(struct conn *conn)
{
	close_fd(&conn->fd);
	free(conn->input);
	free(conn->joined);
	conn_drop_output(conn);
	*conn = (struct conn){.fd = -1};
}

/* Reading */

/* Drops the message that the last conn_next handed out. */
static void release_delivered(struct conn *conn)
{
	conn->input_start += conn->delivered;
	conn->input_size -= conn->delivered;
	conn->delivered = 0;
	if (conn->joined_delivered) {
		free(conn->joined);
		conn->joined = NULL;
		conn->joined_size = conn->joined_capacity = 0;
		conn->joined_delivered = false;
	}
	if (conn->input_size == 0) {
		free(conn->input);
		conn->input = NULL;
		conn->input_start = conn->input_capacity = 0;
	}
}

/* How large the input buffer has to be for the frame at its start: small until a header asks for more. */
static size_t input_target(const struct conn *conn)
{
	struct wire_header head;

	if (conn->input_size < sizeof(head))
		return INPUT_MIN;
	memcpy(&head, conn->input + conn->input_start, sizeof(head));
	if (head.size + sizeof(head) <= INPUT_MIN)
		return INPUT_MIN;
	return INPUT_MAX;
}

static bool input_reserve(struct conn *conn)
{
	size_t target = input_target(conn);
	uint8_t *input;

	if (conn->input_start) {
		memmove(conn->input, conn->input + conn->input_start, conn->input_size);
		/* what was moved may be a secret, which its receiver wipes where it finds it */
		explicit_bzero(conn->input + conn->input_size, conn->input_start);
		conn->input_start = 0;
	}
	if (conn->input_capacity >= target)
		return true;
	input = realloc(conn->input, target);
	if (!input)
		return false;
	conn->input = input;
	conn->input_capacity = target;
	return true;
}

int conn_read(struct conn *conn)
{
	ssize_t got;

	release_delivered(conn);
	if (!input_reserve(conn))
		return -ENOMEM;
	if (conn->input_size == conn->input_capacity)
		return CONN_READ; /* a whole frame waits: the caller has to take it first */
	do
		got = read(conn->fd, conn->input + conn->input_size, conn->input_capacity - conn->input_size);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EAGAIN ? CONN_AGAIN : -errno;
	if (got == 0)
		return CONN_CLOSED;
	conn->input_size += (size_t)got;
	return CONN_READ;
}

static int check_hello(struct conn *conn, const struct message *message)
{
	struct wire_hello hello;

	if (message->head.type != WIRE_HELLO || message->size != sizeof(hello))
		return -EPROTO;
	memcpy(&hello, message->payload, sizeof(hello));
	if (memcmp(hello.magic, WIRE_MAGIC, sizeof(hello.magic)) != 0)
		return -EPROTO;
	if (hello.version != WIRE_VERSION)
		return -EPROTONOSUPPORT;
	conn->greeted = true;
	conn->peer_role = hello.role;
	return 0;
}

/* The rules of the handshake; everything else about a message is its receiver's business. */
static int deliver(struct conn *conn, const struct message *message)
{
	if (!conn->greeted) {
		int error = check_hello(conn, message);

		return error ? error : 1;
	}
	return message->head.type == WIRE_HELLO ? -EPROTO : 1;
}

static bool same_message(const struct wire_header *a, const struct wire_header *b)
{
	return a->type == b->type && a->container == b->container && a->process == b->process && a->tag == b->tag && ((a->flags ^ b->flags) & ~WIRE_MORE) == 0;
}

static int join(struct conn *conn, const struct wire_header *head, const uint8_t *payload)
{
	size_t needed = conn->joined_size + head->size;

	if (needed > conn->message_max)
		return -EMSGSIZE;
	if (needed > conn->joined_capacity) {
		size_t capacity = needed + conn->joined_size; /* doubling: a plan is a handful of copies, not hundreds */
		uint8_t *joined;

		if (capacity > conn->message_max)
			capacity = conn->message_max;
		joined = realloc(conn->joined, capacity);
		if (!joined)
			return -ENOMEM;
		conn->joined = joined;
		conn->joined_capacity = capacity;
	}
	if (head->size && conn->joined)
		memcpy(conn->joined + conn->joined_size, payload, head->size);
	conn->joined_size = needed;
	return 0;
}

/* Adds a frame to the message being joined: 1 when that completes it, 0 when more has to come. */
static int join_frame(struct conn *conn, const struct wire_header *head, const uint8_t *payload)
{
	int error;

	if (conn->message_max <= WIRE_PAYLOAD_MAX)
		return -EPROTO;
	if (!conn->joining)
		conn->joining_head = *head;
	else if (!same_message(&conn->joining_head, head))
		return -EPROTO;
	error = join(conn, head, payload);
	if (error)
		return error;
	conn->joining = (head->flags & WIRE_MORE) != 0;
	return conn->joining ? 0 : 1;
}

/* Takes one frame off the input: 1 = a message is complete, 0 = it is not yet, 2 = no whole frame is there. */
static int next_frame(struct conn *conn, struct message *message)
{
	struct wire_header head;
	const uint8_t *payload;
	int complete;

	if (conn->input_size < sizeof(head))
		return 2;
	memcpy(&head, conn->input + conn->input_start, sizeof(head));
	if (head.size > WIRE_PAYLOAD_MAX || head.size > conn->message_max)
		return -EPROTO;
	if (conn->input_size < sizeof(head) + head.size)
		return 2;
	conn->delivered = sizeof(head) + head.size;
	payload = conn->input + conn->input_start + sizeof(head);
	if (!conn->joining && !(head.flags & WIRE_MORE)) {
		*message = (struct message){.head = head, .payload = payload, .size = head.size};
		return 1;
	}
	complete = join_frame(conn, &head, payload);
	if (complete <= 0)
		return complete;
	conn->joined_delivered = true;
	*message = (struct message){.head = conn->joining_head, .payload = conn->joined, .size = conn->joined_size};
	message->head.flags &= (uint8_t)~WIRE_MORE;
	return 1;
}

int conn_next(struct conn *conn, struct message *message)
{
	for (;;) {
		int found;

		release_delivered(conn);
		found = next_frame(conn, message);
		if (found < 0)
			return found;
		if (found == 1)
			return deliver(conn, message);
		if (found == 2)
			return 0;
	}
}

/* Writing */

static bool keeps_order(uint8_t type)
{
	return type == WIRE_DATA || type == WIRE_CLOSE || type == WIRE_EXITED;
}

static void queue_push(struct queue *queue, struct outgoing *item)
{
	if (queue->last)
		queue->last->next = item;
	else
		queue->first = item;
	queue->last = item;
	queue->size += item->size;
}

static struct outgoing *queue_pop(struct queue *queue)
{
	struct outgoing *item = queue->first;

	if (!item)
		return NULL;
	queue->first = item->next;
	if (!queue->first)
		queue->last = NULL;
	queue->size -= item->size;
	item->next = NULL;
	return item;
}

/* Copies the next `size` bytes out of the parts; `part` and `offset` remember where the last call stopped. */
static void gather(uint8_t *to, size_t size, const struct iovec *parts, size_t *part, size_t *offset)
{
	while (size) {
		size_t piece = parts[*part].iov_len - *offset;

		if (piece > size)
			piece = size;
		if (piece)
			memcpy(to, (const uint8_t *)parts[*part].iov_base + *offset, piece);
		to += piece;
		size -= piece;
		*offset += piece;
		if (*offset == parts[*part].iov_len) {
			(*part)++;
			*offset = 0;
		}
	}
}

static size_t frames_for(size_t size)
{
	return size <= WIRE_PAYLOAD_MAX ? 1 : (size + WIRE_PAYLOAD_MAX - 1) / WIRE_PAYLOAD_MAX;
}

/* Writes headers and payload of all frames into `to`, which has room for them. */
static void encode(uint8_t *to, struct wire_header head, size_t size, const struct iovec *parts)
{
	size_t part = 0, offset = 0;
	uint8_t flags = head.flags & (uint8_t)~WIRE_MORE;

	do {
		size_t piece = size < WIRE_PAYLOAD_MAX ? size : WIRE_PAYLOAD_MAX;

		size -= piece;
		head.size = (uint32_t)piece;
		head.flags = size ? flags | WIRE_MORE : flags;
		memcpy(to, &head, sizeof(head));
		gather(to + sizeof(head), piece, parts, &part, &offset);
		to += sizeof(head) + piece;
	} while (size);
}

int conn_send_parts(struct conn *conn, const struct wire_header *head, const struct iovec *parts, size_t count)
{
	struct outgoing *item;
	size_t size = 0, encoded;

	for (size_t i = 0; i < count; i++)
		size += parts[i].iov_len;
	if (size > WIRE_MESSAGE_MAX)
		return -EMSGSIZE;
	encoded = frames_for(size) * WIRE_HEADER_SIZE + size;
	item = malloc(sizeof(*item) + encoded);
	if (!item)
		return -ENOMEM;
	item->next = NULL;
	item->size = encoded;
	item->done = 0;
	encode(item->bytes, *head, size, parts);
	queue_push(keeps_order(head->type) ? &conn->ordered : &conn->control, item);
	return 0;
}

int conn_send(struct conn *conn, const struct wire_header *head, const void *payload, size_t size)
{
	struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = size};

	return conn_send_parts(conn, head, &part, 1);
}

int conn_send_hello(struct conn *conn, enum wire_role role)
{
	struct wire_hello hello = {.version = WIRE_VERSION, .role = (uint16_t)role};
	struct wire_header head = {.type = WIRE_HELLO};

	memcpy(hello.magic, WIRE_MAGIC, sizeof(hello.magic));
	return conn_send(conn, &head, &hello, sizeof(hello));
}

int conn_send_result(struct conn *conn, const struct wire_header *request, int error, uint32_t index, const char *detail)
{
	struct wire_result result = {.error = error, .index = index};
	struct wire_header head = {.type = WIRE_RESULT, .container = request->container, .process = request->process, .tag = request->tag};
	struct iovec parts[] = {
		{.iov_base = &result, .iov_len = sizeof(result)},
		{.iov_base = (void *)(uintptr_t)detail, .iov_len = detail ? strlen(detail) : 0},
	};

	return conn_send_parts(conn, &head, parts, 2);
}

/* Writes on what is being written: 1 = all of it is out, 0 = the descriptor is full, or -errno.
 *
 * A virtio port copies each write into one piece of kernel memory, of up to 32 KiB (drivers/char/virtio_console.c,
 * port_fops_write). Where memory is short, or in pieces, a page can be had when eight in a row cannot. */
static int write_current(struct conn *conn)
{
	struct outgoing *item = conn->writing;
	size_t most = SIZE_MAX;

	while (item->done < item->size) {
		size_t left = item->size - item->done;
		ssize_t put = write(conn->fd, item->bytes + item->done, left < most ? left : most);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0 && errno == ENOMEM && left > WRITE_SMALL && most > WRITE_SMALL) {
			most = WRITE_SMALL;
			continue;
		}
		if (put < 0)
			return errno == EAGAIN ? 0 : -errno;
		if (put == 0)
			return 0;
		item->done += (size_t)put;
	}
	free(item);
	conn->writing = NULL;
	return 1;
}

int conn_flush(struct conn *conn)
{
	for (;;) {
		int done;

		if (!conn->writing)
			conn->writing = queue_pop(&conn->control);
		if (!conn->writing)
			conn->writing = queue_pop(&conn->ordered);
		if (!conn->writing)
			return 0;
		done = write_current(conn);
		if (done <= 0)
			return done;
	}
}

size_t conn_queued(const struct conn *conn)
{
	size_t current = conn->writing ? conn->writing->size - conn->writing->done : 0;

	return current + conn->control.size + conn->ordered.size;
}
