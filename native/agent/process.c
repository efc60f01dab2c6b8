/* What happens to a process between PLAN and EXITED. */
#include "process.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "cgroup.h"

static struct wire_header request_head(const struct process *process, uint32_t tag)
{
	return (struct wire_header){.container = process->container, .process = process->number, .tag = tag};
}

/* Answers a pending request once. */
static void answer(struct process *process, struct conn *conn, uint32_t *tag, int error, const char *detail)
{
	struct wire_header head = request_head(process, *tag);

	send_result(conn, &head, error, process->failure.index, detail);
	*tag = 0;
}

void process_free(struct process *process)
{
	stream_close(process);
	close_fd(&process->status);
	close_fd(&process->start);
	cgroup_remove(process->container, process->cgroup);
	close_fd(&process->cgroup);
	munmap(process->words, sizeof(*process->words));
	free(process);
}

void process_start(struct process *process, struct conn *conn, const struct wire_header *request)
{
	if (process->reaped || process->asked_signal || (process->ready && process->status < 0 && !process->started)) {
		send_result(conn, request, ESRCH, 0, NULL);
	} else if (!process->ready || process->start < 0) {
		send_result(conn, request, EINVAL, 0, process->ready ? "started already" : "not ready to be started");
	} else if (write(process->start, "", 1) != 1) {
		send_result(conn, request, errno == EPIPE ? ESRCH : errno, 0, NULL);
	} else {
		process->start_tag = request->tag;
		close_fd(&process->start);
	}
}

/* Whether the default action of a signal ends the process. */
static bool is_fatal(int number)
{
	switch (number) {
	case 0:
	case SIGCHLD:
	case SIGURG:
	case SIGWINCH:
	case SIGCONT:
	case SIGSTOP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
		return false;
	default:
		return number < NSIG;
	}
}

/* PID 1 of a namespace ignores what it has no handler for, and before the exec it has none: a fatal signal is then sent
 * as SIGKILL and remembered. */
static int signal_unstarted(struct process *process, int number)
{
	if (!is_fatal(number))
		return check(kill(process->pid, number));
	process->asked_signal = number;
	return check(kill(process->pid, SIGKILL));
}

static int signal_all(const struct process *process, int number)
{
	if (process->cgroup >= 0)
		return cgroup_signal(process->cgroup, number);
	int error = check(kill(process->pid, number));
	return kill(-process->pid, number) == 0 ? 0 : error; /* its session's first group is all that is known */
}

int process_signal(struct process *process, struct conn *conn, const struct wire_signal *signal)
{
	int number = (int)signal->signal;

	if (signal->signal >= NSIG)
		return -EINVAL;
	process_read_status(process, conn); /* the exec may be done and not yet noticed */
	if (process->reaped && !(signal->all && process->cgroup >= 0))
		return -ESRCH;
	if (!process->started && !process->reaped)
		return signal_unstarted(process, number);
	return signal->all ? signal_all(process, number) : check(kill(process->pid, number));
}

void process_reap(struct process *process, int exit_status)
{
	process->reaped = true;
	process->exit_status = exit_status;
	if (process->asked_signal && WIFSIGNALED(exit_status) && WTERMSIG(exit_status) == SIGKILL)
		process->exit_status = process->asked_signal;
	if (process->cgroup >= 0)
		cgroup_signal(process->cgroup, SIGKILL); /* what it left behind holds the output streams */
}

static void take_record(struct process *process, struct conn *conn, const struct status_record *record)
{
	if (record->kind != STATUS_READY)
		return;
	process->ready = true;
	answer(process, conn, &process->plan_tag, 0, NULL);
}

/* As with runc: started is what was about to exec, and a file that is no program is told by the process itself, which ends with 1. */
static void tell_no_program(struct process *process, struct conn *conn)
{
	char line[PLAN_DETAIL_SIZE + 64];
	int length = snprintf(line, sizeof(line), "%s: %s", process->failure.detail, strerror(process->failure.error));
	char *reason = strrchr(line, ':');

	if (length < 0 || !reason || length + 1 >= (int)sizeof(line))
		return;
	reason[2] = (char)tolower((unsigned char)reason[2]);
	line[length] = '\n';
	line[length + 1] = '\0';
	stream_complain(process, conn, line);
}

/* The end of the status pipe after START and without words of a failure is the exec: the descriptor is close-on-exec. */
static void take_end(struct process *process, struct conn *conn)
{
	close_fd(&process->status);
	process->failure = *process->words;
	process->failure.detail[PLAN_DETAIL_SIZE - 1] = '\0';
	if (!process->ready || process->start >= 0 || process->failure.kind == STATUS_FAILED || process->asked_signal)
		return;
	if (process->failure.kind == STATUS_NO_PROGRAM)
		tell_no_program(process, conn);
	process->started = true;
	answer(process, conn, &process->start_tag, 0, NULL);
}

void process_read_status(struct process *process, struct conn *conn)
{
	while (process->status >= 0) {
		struct status_record record;
		ssize_t got = read(process->status, &record, sizeof(record));

		if (got == (ssize_t)sizeof(record))
			take_record(process, conn, &record);
		else if (got >= 0 || (errno != EAGAIN && errno != EINTR))
			take_end(process, conn);
		else if (errno == EAGAIN)
			return;
	}
}

/* Words for a death that left no record. */
static void explain_death(struct process *process)
{
	struct status_record *failure = &process->failure;
	int status = process->exit_status;

	if (failure->kind == STATUS_FAILED)
		return;
	failure->error = ECHILD;
	if (WIFSIGNALED(status))
		snprintf(failure->detail, sizeof(failure->detail), "init was killed by signal %d", WTERMSIG(status));
	else
		snprintf(failure->detail, sizeof(failure->detail), "init exited with status %d", WEXITSTATUS(status));
}

static void send_exited(const struct process *process, struct conn *conn)
{
	/* However it ended then: its filter may have denied the exit. */
	bool no_program = process->failure.kind == STATUS_NO_PROGRAM;
	struct wire_exited exited = {.status = no_program ? W_EXITCODE(EXIT_FAILURE, 0) : process->exit_status};
	struct wire_header head = request_head(process, 0);

	if (process->cgroup >= 0 && cgroup_saw_oom_kill(process->cgroup))
		exited.flags |= WIRE_EXITED_OOM;
	head.type = WIRE_EXITED;
	send_message(conn, &head, &exited, sizeof(exited));
}

bool process_advance(struct process *process, struct conn *conn)
{
	if (!process->reaped)
		return true;
	process_read_status(process, conn);
	if (!process->ready) {
		explain_death(process);
		answer(process, conn, &process->plan_tag, process->failure.error, process->failure.detail);
		return false;
	}
	if (process->start_tag) {
		explain_death(process);
		answer(process, conn, &process->start_tag, process->failure.error, process->failure.detail);
	}
	if (!stream_drained(process))
		return true;
	send_exited(process, conn);
	return false;
}
