/* A first process made ahead of its container: in the template, so that no clone has to wait for its namespaces. */
#ifndef RUNDCTL_AGENT_SPARE_H
#define RUNDCTL_AGENT_SPARE_H

#include "process.h"

/* Before a snapshot. Nothing is lost without a spare but time, so there is no error. */
void spare_make(void);
/* The spare, with that plan under way, or NULL if there is none that fits. One that does not fit is gone then. */
struct process *spare_take(uint16_t container, const uint8_t *plan, size_t size);
/* A child has died: was it that one? */
void spare_reaped(pid_t pid);

#endif
