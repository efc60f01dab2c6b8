/* The birth of a container's first process: pipes, cgroup, namespaces, clone; and its life until the exec. */
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cgroup.h"
#include "log.h"
#include "process.h"
#include "timens.h"

enum {
	CHILD_STATUS = 3, /* descriptors of the child, after 0, 1 and 2 */
	CHILD_START = 4,
	CHILD_FREE = 5,	  /* everything from here on is closed */
	ABOVE = 16,	  /* out of the way of those */
	EXIT_NOT_FOUND = 127,
	EXIT_NOT_EXECUTABLE = 126,
};

/* Read end 0, write end 1. */
struct pipes {
	int stdio[WIRE_STREAMS][2];
	int status[2];
	int start[2];
};

static void pipes_close(struct pipes *pipes)
{
	int *fd = (int *)pipes;

	for (size_t i = 0; i < sizeof *pipes / sizeof *fd; i++)
		close_fd(&fd[i]);
}

#define cleanup_pipes __attribute__((cleanup(pipes_close)))

static int pipes_open(struct pipes *pipes)
{
	int(*pair)[2] = (int(*)[2])pipes;

	memset(pipes, -1, sizeof *pipes);
	for (size_t i = 0; i < sizeof *pipes / sizeof *pair; i++)
		if (pipe2(pair[i], O_CLOEXEC) < 0)
			return -errno;
	return 0;
}

/* Takes one end for the agent. Non-blocking concerns that end alone: the two have descriptions of their own. */
static int agent_end(int *fd)
{
	fcntl(*fd, F_SETFL, O_NONBLOCK);
	return take_fd(fd);
}

static void take_ends(struct process *process, struct pipes *pipes)
{
	process->input.fd = agent_end(&pipes->stdio[WIRE_STDIN][1]);
	process->outputs[0] = (struct output){.fd = agent_end(&pipes->stdio[WIRE_STDOUT][0]), .stream = WIRE_STDOUT};
	process->outputs[1] = (struct output){.fd = agent_end(&pipes->stdio[WIRE_STDERR][0]), .stream = WIRE_STDERR};
	process->status = agent_end(&pipes->status[0]);
	process->start = agent_end(&pipes->start[1]);
}

static void reset_signals(void)
{
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Puts the descriptors in their places and closes all others, the agent's channel first among them. */
static int arrange_descriptors(const int stdio[3], int status, int start)
{
	int status_above = fcntl(status, F_DUPFD_CLOEXEC, ABOVE);
	int start_above = fcntl(start, F_DUPFD_CLOEXEC, ABOVE);

	if (status_above < 0 || start_above < 0)
		return -errno;
	for (int fd = 0; fd < 3; fd++)
		if (dup2(stdio[fd], fd) < 0)
			return -errno;
	if (dup3(status_above, CHILD_STATUS, O_CLOEXEC) < 0 || dup3(start_above, CHILD_START, O_CLOEXEC) < 0)
		return -errno;
	return check(close_range(CHILD_FREE, ~0U, 0));
}

static void report_failure(const struct plan_context *context, struct plan_failure failure)
{
	struct status_record record = {
		.kind = STATUS_FAILED, .error = failure.error, .index = failure.index};

	memcpy(record.detail, context->detail, sizeof record.detail);
	if (write(context->status, &record, sizeof record) < 0)
		_exit(EXIT_FAILURE); /* the agent sees a death without a record */
}

void child_run(const int stdio[3], int status, int start, const uint8_t *plan)
{
	struct plan_context context;
	int error = arrange_descriptors(stdio, status, start);

	reset_signals();
	umask(0);
	setsid();
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* until the exec this is a copy of the agent's memory */
	plan_context_init(&context);
	context.status = error ? status : CHILD_STATUS;
	context.start = CHILD_START;
	struct plan_failure failure = error ? (struct plan_failure){.error = -error} : plan_run(&context, plan);
	report_failure(&context, failure);
	_exit(failure.error == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

/* As fork(2) with namespaces: 0 in the child. */
static pid_t clone_child(uint64_t namespaces, int cgroup)
{
	struct clone_args arguments = {.flags = namespaces & ~(uint64_t)CLONE_NEWTIME, .exit_signal = SIGCHLD};

	if (cgroup >= 0) {
		arguments.flags |= CLONE_INTO_CGROUP;
		arguments.cgroup = (unsigned)cgroup;
	}
	return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

static pid_t clone_into(struct process *process, struct pipes *pipes, const uint8_t *plan)
{
	struct wire_plan head = plan_head(plan);
	bool own_time = (head.clone_flags & CLONE_NEWTIME) != 0;
	cleanup_close int time = own_time ? timens_enter(&head) : -1;

	if (own_time && time < 0)
		return time;
	pid_t pid = clone_child(head.clone_flags, process->cgroup);
	if (pid == 0) {
		int stdio[] = {pipes->stdio[WIRE_STDIN][0], pipes->stdio[WIRE_STDOUT][1], pipes->stdio[WIRE_STDERR][1]};
		child_run(stdio, pipes->status[1], pipes->start[0], plan);
	}
	int error = pid < 0 ? -errno : 0;
	if (own_time && timens_leave(time) < 0)
		log_line("the agent stays in a container's time namespace");
	return error ? error : pid;
}

/* -errno, or 0 with everything in `process`. */
static int spawn(struct process *process, const uint8_t *plan)
{
	cleanup_pipes struct pipes pipes;
	int error = pipes_open(&pipes);

	if (error)
		return error;
	process->cgroup = cgroup_make(process->container);
	if (process->cgroup < -1)
		return process->cgroup;
	process->pid = clone_into(process, &pipes, plan);
	if (process->pid < 0)
		return process->pid;
	take_ends(process, &pipes);
	return 0;
}

struct process *process_spawn(uint16_t container, const uint8_t *plan, int *error)
{
	struct process *process = calloc(1, sizeof *process);

	*error = ENOMEM;
	if (!process)
		return NULL;
	*process = (struct process){.container = container, .status = -1, .start = -1, .cgroup = -1, .input.fd = -1,
				    .outputs = {{.fd = -1}, {.fd = -1}}};
	*error = -spawn(process, plan);
	if (!*error)
		return process;
	process_free(process);
	return NULL;
}
