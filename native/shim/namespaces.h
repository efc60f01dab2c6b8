/* What the shim's pid shows to whoever learns it, and what QEMU and the helpers inherit: never the host's (docs/adr/0003-process-model.md). */
#ifndef RUNDCTL_SHIM_NAMESPACES_H
#define RUNDCTL_SHIM_NAMESPACES_H

struct options;

/* Network, IPC, UTS and cgroup namespaces of this process' own (the UTS namespace with the container's names). 0 or -errno. */
int namespaces_enter(const struct options *options);

#endif
