#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "clock.h"

/* Nothing depends on this record but words, so a full disk does not keep the shim from ending. */
void record_write(int state, const struct ending *ending)
{
	cleanup_close int file = openat(state, "exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (file < 0)
		return;
	if (dprintf(file, "code=%d\nreason=%s\nstatus=%d\noom=%d\ntime_ns=%lld\ndetail=%s\n", ending->code, ending->reason, ending->status, ending->oom,
		    (long long)clock_ns(CLOCK_REALTIME), ending->detail) > 0)
		(void)renameat(state, "exit.new", state, "exit");
	else
		(void)unlinkat(state, "exit.new", 0);
}

int record_starting(int state)
{
	cleanup_close int file = openat(state, "started.new", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	return file < 0 ? -errno : 0;
}

/* Another name takes no room: it does not fail where the file could be made. */
void record_started(int state)
{
	(void)renameat(state, "started.new", state, "started");
}

int record_paused(int state, bool paused)
{
	cleanup_close int file = -1;

	if (!paused)
		return unlinkat(state, "paused", 0) < 0 && errno != ENOENT ? -errno : 0;
	file = openat(state, "paused", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	return file < 0 ? -errno : 0;
}
