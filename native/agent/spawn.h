/* The birth of a container's first process. */
#ifndef RUNDCTL_AGENT_SPAWN_H
#define RUNDCTL_AGENT_SPAWN_H

#include "process.h"

/* Clones the first process of a container (or takes the spare), which begins to run its checked plan of `size` bytes.
 * NULL: `*error` is an errno. */
struct process *process_spawn(uint16_t container, const uint8_t *plan, size_t size, int *error);

#endif
