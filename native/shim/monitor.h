/* QEMU's monitor as the shim has it after the commit: to stop the machine and to let it go on (docs/interop/qmp-spec in QEMU). */
#ifndef RUNDCTL_SHIM_MONITOR_H
#define RUNDCTL_SHIM_MONITOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum {
	MONITOR_COMMANDS_MAX = 8, /* under way: QEMU itself takes no more at a time */
	MONITOR_LINE_MAX = 1024,  /* of a longer line the beginning is kept: no answer to us is as long */
};

/* A command that QEMU has not confirmed yet. */
struct command {
	uint32_t client;	 /* its id; that client may be gone */
	struct wire_header head; /* of its PAUSE or RESUME; tag 0: the place is free */
	uint32_t id;		 /* by which QEMU's answer names it */
};

/* How QEMU answered a command. */
struct answer {
	struct command command;
	bool refused;
};

struct monitor {
	int fd; /* -1: closed */
	bool greeted;
	uint32_t last_id;
	struct command commands[MONITOR_COMMANDS_MAX];
	char line[MONITOR_LINE_MAX]; /* what has come of the line that is being read */
	size_t length;
	bool stopped; /* QEMU has said that the machine stands still, and no command of ours was to make it */
};

/* Sends `stop` (for a PAUSE) or `cont`. 0, or -ENOBUFS: too many are under way, -EPIPE: nobody hears. */
int monitor_send(struct monitor *monitor, uint32_t client, const struct wire_header *head);
/* Reads what has come, at most `size` bytes of it. 0 at its end or after an error, when the monitor is closed; else the number of bytes. */
size_t monitor_read(struct monitor *monitor, char *bytes, size_t size);
/* Takes bytes until the answer to a command is complete: the number of bytes taken; `answer->command.head.tag` is 0 if there is none. */
size_t monitor_take(struct monitor *monitor, const char *bytes, size_t size, struct answer *answer);
/* Any command that waits for its answer, which is forgotten: false if there is none. */
bool monitor_give_up(struct monitor *monitor, struct command *command);

#endif
