/* What the shim leaves in the container's directory: how it ended, and that it was started or paused. */
#ifndef RUNDCTL_SHIM_RECORD_H
#define RUNDCTL_SHIM_RECORD_H

#include <stdbool.h>

struct ending {
	int code;	    /* exit code of the shim */
	const char *reason; /* container, qemu, a helper's name, oom, agent, creator, stopped, internal */
	int status;	    /* wait status behind it */
	bool oom;	    /* memory ran out: the container's in its guest, or (reason oom) the VM's on the host */
	char detail[192];
};
void record_write(int state, const struct ending *ending);
/* Makes sure of the place for the mark `started`; -errno. */
int record_starting(int state);
void record_started(int state);
/* Makes or removes the mark `paused`; -errno if that fails. */
int record_paused(int state, bool paused);

#endif
