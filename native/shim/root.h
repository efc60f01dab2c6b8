/* The shim's root directory. */
#ifndef RUNDCTL_SHIM_ROOT_H
#define RUNDCTL_SHIM_ROOT_H

#include "options.h"

/* Makes the container's rootfs, as the host can see it, the shim's root; -errno. */
int root_enter(const struct options *options);

#endif
