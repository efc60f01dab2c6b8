/* A time namespace for the next child: entered by the agent before the clone, left after it (ADR 2). */
#ifndef RUNDCTL_AGENT_TIMENS_H
#define RUNDCTL_AGENT_TIMENS_H

#include "wire.h"

/* Returns what timens_leave needs (a descriptor), or -errno with nothing entered. */
int timens_enter(const struct wire_plan *head);
int timens_leave(int own);

#endif
