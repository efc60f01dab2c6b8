/* The host's kills for want of memory. */
#ifndef RUNDCTL_SHIM_OOM_H
#define RUNDCTL_SHIM_OOM_H

/* How often the kernel has killed in the cgroup for want of memory; 0 if that cannot be told. */
unsigned long long oom_kills(int events);

#endif
