/* Bytes of a stream that wait for their reader: a FIFO of at most WIRE_WINDOW bytes (credit guarantees the bound),
 * which takes memory only while it holds something. */
#ifndef RUNDCTL_BACKLOG_H
#define RUNDCTL_BACKLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backlog {
	uint8_t *bytes;
	size_t start;	 /* first byte not yet taken */
	size_t size;	 /* bytes that wait */
	size_t capacity; /* of `bytes` */
};

/* Appends; false when memory is exhausted or the window would be exceeded. */
bool backlog_append(struct backlog *backlog, const void *bytes, size_t size);

/* The bytes that wait, in one piece: `backlog->size` of them. */
static inline const uint8_t *backlog_head(const struct backlog *backlog)
{
	return backlog->bytes + backlog->start;
}

/* Forgets the first `size` bytes; frees the memory when nothing is left. */
void backlog_consume(struct backlog *backlog, size_t size);

/* Forgets everything. */
void backlog_clear(struct backlog *backlog);

#endif
