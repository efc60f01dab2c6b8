#include "backlog.h"

#include <stdlib.h>
#include <string.h>

#include "wire.h"

/* Moves what waits to the front and makes room for `size` more bytes. */
static bool backlog_reserve(struct backlog *backlog, size_t size)
{
	size_t needed = backlog->size + size;
	uint8_t *bytes;

	if (backlog->start && backlog->size)
		memmove(backlog->bytes, backlog->bytes + backlog->start, backlog->size);
	backlog->start = 0;
	if (needed <= backlog->capacity)
		return true;
	bytes = realloc(backlog->bytes, needed);
	if (!bytes)
		return false;
	backlog->bytes = bytes;
	backlog->capacity = needed;
	return true;
}

bool backlog_append(struct backlog *backlog, const void *bytes, size_t size)
{
	if (size == 0)
		return true;
	if (size > WIRE_WINDOW - backlog->size)
		return false;
	if (backlog->start + backlog->size + size > backlog->capacity && !backlog_reserve(backlog, size))
		return false;
	memcpy(backlog->bytes + backlog->start + backlog->size, bytes, size);
	backlog->size += size;
	return true;
}

void backlog_consume(struct backlog *backlog, size_t size)
{
	backlog->start += size;
	backlog->size -= size;
	if (backlog->size == 0)
		backlog_clear(backlog);
}

void backlog_clear(struct backlog *backlog)
{
	free(backlog->bytes);
	*backlog = (struct backlog){0};
}
