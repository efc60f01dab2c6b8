/* How a shim ends: the reason is noted, output is flushed, the record written, QEMU killed. */
#include "end.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach.h"
#include "clock.h"
#include "log.h"
#include "record.h"

/* Output of what was killed is given up when its reader has not moved for so long (docs/adr/0003-process-model.md). */
enum { PATIENCE_MS = 2000 };

void lose_patience(struct shim *shim)
{
	if (!shim->kill_asked)
		shim->progress_ns = clock_ns(CLOCK_MONOTONIC);
	shim->kill_asked = true;
}

static void note_ending(struct shim *shim, int code, const char *reason, int status, const char *detail)
{
	shim->ending = (struct ending){.code = code, .reason = reason, .status = status};
	(void)snprintf(shim->ending.detail, sizeof(shim->ending.detail), "%s", detail);
	shim->exited = true;
	shim->progress_ns = clock_ns(CLOCK_MONOTONIC);
	shim->outputs[0].ended = shim->outputs[1].ended = true;
	endpoint_close(&shim->input.end);
}

void end_container(struct shim *shim, int status, bool oom)
{
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);

	note_ending(shim, code, "container", status, oom ? "a process of the container was killed: it ran out of memory" : "");
	shim->ending.oom = oom;
}

/* A creator that waits for an answer hears why there will be none. */
static void tell_creator(struct shim *shim, int error, const char *detail)
{
	struct wire_header nobody = {.type = WIRE_RESULT};

	for (size_t i = 0; i < shim->client_count; i++) {
		struct client *client = &shim->clients[i];

		if (client->id && client->id == shim->creator)
			(void)conn_send_result(&client->conn, &nobody, error, 0, detail);
	}
}

void end_early(struct shim *shim, int error, int code, const char *reason, int status, const char *detail)
{
	if (shim->exited)
		return;
	note_ending(shim, code, reason, status, detail);
	shim->kill_asked = true;
	if (!shim->committed)
		tell_creator(shim, error, detail);
	if (shim->qemu > 0)
		(void)kill(shim->qemu, SIGKILL);
}

static bool is_waiting(const struct shim *shim)
{
	return shim->outputs[0].end.fd >= 0 || shim->outputs[1].end.fd >= 0;
}

int patience_ms(const struct shim *shim)
{
	int64_t left;

	if (!shim->exited || !shim->kill_asked)
		return -1;
	left = (int64_t)PATIENCE_MS * shim->options->patience - (clock_ns(CLOCK_MONOTONIC) - shim->progress_ns) / NS_PER_MS;
	return left > 0 ? (int)left : 0;
}

void end_when_flushed(struct shim *shim)
{
	if (shim->exited && (!is_waiting(shim) || patience_ms(shim) == 0))
		finish(shim);
}

void finish(struct shim *shim)
{
	record_write(shim->options->state, &shim->ending);
	if (shim->qemu > 0) {
		(void)kill(shim->qemu, SIGKILL);
		attach(shim->options->attach);
		(void)waitpid(shim->qemu, NULL, 0);
	}
	log_take(shim->options->log, &shim->words, LOG_PIECES);
	_exit(shim->ending.code);
}
