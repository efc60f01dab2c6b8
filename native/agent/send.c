/* Sending that does not fail: the loop of PID 1 may be late, it may not lose what it has taken from a pipe. */
#include <time.h>

#include "log.h"
#include "process.h"

enum { RETRY_NS = 10 * 1000 * 1000 };

static void wait_for_memory(struct conn *conn)
{
	struct timespec pause = {.tv_nsec = RETRY_NS};

	conn_flush(conn); /* what is written is freed */
	nanosleep(&pause, NULL);
}

void send_message(struct conn *conn, const struct wire_header *head, const void *payload, size_t size)
{
	while (conn_send(conn, head, payload, size) == -ENOMEM)
		wait_for_memory(conn);
}

void send_result(struct conn *conn, const struct wire_header *request, int error, uint32_t index, const char *detail)
{
	if (!request->tag)
		return; /* a notification: nobody waits */
	while (conn_send_result(conn, request, error, index, detail) == -ENOMEM)
		wait_for_memory(conn);
}

void send_violation(struct conn *conn, const char *detail)
{
	struct wire_header nobody = {0};

	while (conn_send_result(conn, &nobody, EPROTO, 0, detail) == -ENOMEM)
		wait_for_memory(conn);
	log_line(detail);
}
