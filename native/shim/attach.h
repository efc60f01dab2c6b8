/* What KVM does to cgroups, ahead of it. */
#ifndef RUNDCTL_SHIM_ATTACH_H
#define RUNDCTL_SHIM_ATTACH_H

/* Has a child take the lock that KVM is going to take; it is reaped as any other. `procs`: `cgroup.procs` of a cgroup that this process is in, -1: no need. */
void attach_ahead(int procs);

#endif
