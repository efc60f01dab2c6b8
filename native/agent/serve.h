/* The loop. */
#ifndef RUNDCTL_AGENT_SERVE_H
#define RUNDCTL_AGENT_SERVE_H

#include <stdbool.h>

/* Answers on the channel `fd`: for ever if `persistent` (a guest's port, whose peers come and go), else until its end,
 * when all processes are killed. -errno if the loop could not begin. */
int serve(int fd, bool persistent);

#endif
