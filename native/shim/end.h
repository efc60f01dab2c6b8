/* How it ends. The first that says so wins. */
#ifndef RUNDCTL_SHIM_END_H
#define RUNDCTL_SHIM_END_H

#include <stdbool.h>

#include "shim.h"

/* The container ended by itself: what it wrote is flushed with all patience, then the shim ends. */
void end_container(struct shim *shim, int status, bool oom);
/* Something else ended: QEMU is killed, a creator that still waits hears `error` and `detail`, output that stalls is given up. */
void end_early(struct shim *shim, int error, int code, const char *reason, int status, const char *detail);
/* A SIGKILL or STOP was asked for: from now on stalled output is given up. */
void lose_patience(struct shim *shim);
/* Ends QEMU and the shim if all output is out or given up. */
void end_when_flushed(struct shim *shim);
/* Milliseconds until patience ends, -1 = for ever. */
int patience_ms(const struct shim *shim);
/* Writes the record, ends QEMU and the shim. */
void finish(struct shim *shim) __attribute__((noreturn));

#endif
