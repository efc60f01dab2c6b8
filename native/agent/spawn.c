/* The birth of a container's first process: pipes, cgroup, namespaces, clone. */
#include "spawn.h"

#include <sched.h>

#include "birth.h"
#include "cgroup.h"
#include "child.h"
#include "log.h"
#include "spare.h"
#include "timens.h"

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
		child_run(given, process->words, plan);
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
