/* What root may do that serves a guest's files. */
#ifndef RUNDCTL_SHIM_CAPABILITIES_H
#define RUNDCTL_SHIM_CAPABILITIES_H

#include <stdbool.h>

/* What a program that this process becomes may have of them: to serve files, and as a helper to sandbox itself; -errno. */
int capabilities_limit(bool helper);

#endif
