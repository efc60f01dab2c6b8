/* Credit of one direction of one stream (docs/adr/0001-wire-protocol.md): at most WIRE_WINDOW bytes of DATA are
 * unacknowledged. One struct serves either side: the sender counts what it sent, the receiver what it holds. */
#ifndef RUNDCTL_CREDIT_H
#define RUNDCTL_CREDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

struct credit {
	uint32_t outstanding; /* bytes sent, or received, that have not been acknowledged */
};

/* Bytes that may still be sent. */
static inline uint32_t credit_room(const struct credit *credit)
{
	return WIRE_WINDOW - credit->outstanding;
}

/* Books `size` bytes as sent or received; false (and nothing booked) when that is more than the window allows. */
static inline bool credit_spend(struct credit *credit, size_t size)
{
	if (size > credit_room(credit))
		return false;
	credit->outstanding += (uint32_t)size;
	return true;
}

/* Books `size` bytes as acknowledged; false (and nothing booked) when so many were never outstanding. */
static inline bool credit_return(struct credit *credit, size_t size)
{
	if (size > credit->outstanding)
		return false;
	credit->outstanding -= (uint32_t)size;
	return true;
}

#endif
