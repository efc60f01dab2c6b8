/* What QEMU and its helpers see of the host's files. */
#ifndef RUNDCTL_SHIM_ASSEMBLY_H
#define RUNDCTL_SHIM_ASSEMBLY_H

#include <stdbool.h>

#include "options.h"

/* For the process that calls, once, in a mount namespace of its own from here on. -errno. */
int namespace_enter(void);
/* Shows the volumes, by their numbers, in the place of the container's own directory; a descriptor of it. */
int volumes_assemble(const struct options *options);
/* Shows a copy of the mount that `fd` lies on there. */
int directory_show(const struct options *options, int fd, bool read_only);
/* Both of them for QEMU: the volumes, then the exported directory over them, each under the number that QEMU was told. */
int exports_assemble(const struct options *options);

#endif
