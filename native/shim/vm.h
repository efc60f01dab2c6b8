/* The shim's children: QEMU and its helpers. `words`: what is to be their stdout and stderr. */
#ifndef RUNDCTL_SHIM_VM_H
#define RUNDCTL_SHIM_VM_H

#include <sys/types.h>

#include "options.h"

/* Forks QEMU, or a helper; its pid, or -errno. */
pid_t vm_spawn(const struct options *options, int words);
pid_t helper_spawn(const struct options *options, const struct helper *helper, int words);

#endif
