/* libFuzzer: what a peer may send, as frames. Two bytes say how it is read, the rest are the peer's bytes. What comes out as messages is sent on, and has
 * to arrive as it was. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing.h"

enum { GREETED = 1, JOINS = 2, CHUNK_MAX = 17 * 1024, CHUNKS_MAX = 64 };

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* A pair of which one end is a connection. */
static int open_pair(struct conn *conn, size_t message_max)
{
	int pair[2];

	require(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	require(conn_open(conn, pair[0], message_max) == 0);
	return pair[1];
}

/* The message, sent by one connection of ours and taken by another, which has had a HELLO. */
static void send_on(const struct message *message)
{
	struct conn from, to;
	struct message got = {0};
	int far = open_pair(&from, WIRE_MESSAGE_MAX), found;

	require(conn_open(&to, far, WIRE_MESSAGE_MAX) == 0);
	to.greeted = true;
	require(conn_send(&from, &message->head, message->payload, message->size) == 0);
	do {
		require(conn_flush(&from) == 0);
		require(conn_read(&to) >= 0);
		found = conn_next(&to, &got);
	} while (found == 0);
	require(found == 1 && conn_queued(&from) == 0 && !conn_pending(&from));
	require(got.size == message->size && (got.size == 0 || memcmp(got.payload, message->payload, got.size) == 0));
	require(got.head.type == message->head.type && got.head.flags == message->head.flags && got.head.tag == message->head.tag);
	conn_close(&from);
	conn_close(&to);
}

/* All that has come; false once the peer has broken a rule. */
static bool take(struct conn *conn)
{
	struct message message;
	int found;

	while (conn_read(conn) == CONN_READ) {
		while ((found = conn_next(conn, &message)) == 1) {
			require(message.size <= conn->message_max && !(message.head.flags & WIRE_MORE));
			if (message.head.type != WIRE_HELLO)
				send_on(&message);
		}
		if (found < 0)
			return false;
		require(conn->input_size <= WIRE_HEADER_SIZE + WIRE_PAYLOAD_MAX);
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct conn conn;
	size_t chunk;
	int peer;

	if (size < 2)
		return 0;
	chunk = 1 + (size_t)data[1] * data[1] / 4;
	peer = open_pair(&conn, data[0] & JOINS ? WIRE_MESSAGE_MAX : WIRE_PAYLOAD_MAX);
	conn.greeted = data[0] & GREETED;
	data += 2;
	size -= 2;
	if (chunk < size / CHUNKS_MAX)
		chunk = size / CHUNKS_MAX; /* many small reads of a long input take a second */
	while (size) {
		size_t piece = size < chunk ? size : chunk;

		require(piece <= CHUNK_MAX && write(peer, data, piece) == (ssize_t)piece);
		if (!take(&conn))
			break;
		data += piece;
		size -= piece;
	}
	conn_close(&conn);
	close(peer);
	return 0;
}
