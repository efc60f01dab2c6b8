/* Requests about the VM itself. */
#ifndef RUNDCTL_AGENT_MACHINE_H
#define RUNDCTL_AGENT_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* Makes this clone a machine of its own: entropy, clock, hostname. 0 or -errno; `*what` names the step that failed.
 * The entropy is wiped from `payload`, so that it does not stay in memory that the container's child inherits. */
int machine_identity(uint8_t *payload, size_t size, const char **what);
/* Sets the clock after the machine stood still. Nobody could do anything about an error: it goes into the log. */
void machine_date(const struct wire_date *date);
/* What time it is. Whether the kernel still measures the clock it tells the time by: then its rate is not the one that it will have. */
bool machine_tell_clock(struct wire_clock *told);
/* Before a snapshot: the clock is calibrated, timers are on time, a spare waits for its container, what is dirty is written,
 * what a clone need not carry is dropped. 0 or -errno, `*what` as above. */
int machine_settle(const char **what);

#endif
