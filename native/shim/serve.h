/* The shim's loop. */
#ifndef RUNDCTL_SHIM_SERVE_H
#define RUNDCTL_SHIM_SERVE_H

#include <sys/types.h>

#include "options.h"

/* Everything after the start; never returns. */
void serve(const struct options *options, pid_t qemu, int signals, int words) __attribute__((noreturn));

#endif
