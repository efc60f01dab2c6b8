/* The birth of a container's first process: pipes, cgroup, namespaces, clone. */
#include "spawn.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

#include "cgroup.h"
#include "child.h"
#include "log.h"
#include "spare.h"
#include "timens.h"

void pipes_close(struct pipes *pipes)
{
	int *fd = (int *)pipes;

	for (size_t i = 0; i < sizeof(*pipes) / sizeof(*fd); i++)
		close_fd(&fd[i]);
}

int pipes_open(struct pipes *pipes)
{
	int(*pair)[2] = (int(*)[2])pipes;

	memset(pipes, -1, sizeof(*pipes));
	for (size_t i = 0; i < sizeof(*pipes) / sizeof(*pair); i++)
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

void process_take_ends(struct process *process, struct pipes *pipes)
{
	process->input.fd = agent_end(&pipes->stdio[WIRE_STDIN][1]);
	process->outputs[0] = (struct output){.fd = agent_end(&pipes->stdio[WIRE_STDOUT][0]), .stream = WIRE_STDOUT};
	process->outputs[1] = (struct output){.fd = agent_end(&pipes->stdio[WIRE_STDERR][0]), .stream = WIRE_STDERR};
	process->status = agent_end(&pipes->status[0]);
	process->start = agent_end(&pipes->start[1]);
}

pid_t clone_child(uint64_t namespaces, int cgroup)
{
	struct clone_args arguments = {.flags = namespaces & ~(uint64_t)CLONE_NEWTIME, .exit_signal = SIGCHLD};

	if (cgroup >= 0) {
		arguments.flags |= CLONE_INTO_CGROUP;
		arguments.cgroup = (unsigned)cgroup;
	}
	return (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
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
		int given[] = {pipes->stdio[WIRE_STDIN][0], pipes->stdio[WIRE_STDOUT][1], pipes->stdio[WIRE_STDERR][1], pipes->status[1], pipes->start[0]};
		_Static_assert(sizeof(given) / sizeof(*given) == CHILD_DESCRIPTORS, "descriptors of a child");
		child_run(given, plan);
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
	process_take_ends(process, &pipes);
	return 0;
}

struct process *process_new(uint16_t container)
{
	struct process *process = calloc(1, sizeof(*process));

	if (process)
		*process = (struct process){
			.container = container, .status = -1, .start = -1, .cgroup = -1, .input.fd = -1, .outputs = {{.fd = -1}, {.fd = -1}}};
	return process;
}

struct process *process_spawn(uint16_t container, const uint8_t *plan, size_t size, int *error)
{
	struct process *process = spare_take(container, plan, size);

	*error = 0;
	if (process)
		return process;
	process = process_new(container);
	*error = process ? -spawn(process, plan) : ENOMEM;
	if (!*error)
		return process;
	if (process)
		process_free(process);
	return NULL;
}
