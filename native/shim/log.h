/* What QEMU and the helpers say. */
#ifndef RUNDCTL_SHIM_LOG_H
#define RUNDCTL_SHIM_LOG_H

enum { LOG_PIECES = 16 }; /* of the log, which a pipe holds */

/* A pipe for the words of QEMU and the helpers, which neither end ever waits for; -errno. */
int log_pipe(int ends[2]);
/* Moves what has come into the log, in at most `pieces` pieces. When all writers are gone, `*words` is closed, and -1. */
void log_take(int log, int *words, int pieces);

#endif
