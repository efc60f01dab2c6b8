/* Six namespaces, of which the network's is most of the work, take an emulated guest longer than all the mounts of a
 * plan. They depend on nothing that a container may ask for but on being asked for: so one process waits in them when the
 * snapshot is taken. It is used by the first container if that wants exactly these, and killed otherwise. */
#include "spare.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "birth.h"
#include "cgroup.h"
#include "child.h"
#include "log.h"

enum { CONTAINER = 1 };

/* The hostname is the clone's own, and told later: the UTS namespace is entered with the plan. */
#define LATE CLONE_NEWUTS
#define EARLY (CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP)

static struct {
	struct process *process; /* NULL: there is none */
	int go;			 /* write end */
	int plan;
} spare = {.go = -1, .plan = -1};

static void forget(void)
{
	close_fd(&spare.go);
	close_fd(&spare.plan);
	spare.process = NULL;
}

static void discard(void)
{
	struct process *process = spare.process;

	if (!process)
		return;
	forget();
	if (process->pid > 0) {
		kill(process->pid, SIGKILL);
		waitpid(process->pid, NULL, 0); /* its cgroup can be removed only after its end */
	}
	process_free(process);
}

/* -errno, or 0 with a process that sets itself up. */
static int spawn(struct process *process)
{
	cleanup_pipes struct pipes pipes;
	int go[2];
	int error = pipes_open(&pipes);

	if (error || (error = check(pipe2(go, O_CLOEXEC))))
		return error;
	spare.go = go[1];
	cleanup_close int go_end = go[0];
	spare.plan = memfd_create("plan", MFD_CLOEXEC);
	if (spare.plan < 0)
		return -errno;
	process->cgroup = cgroup_make(process->container);
	if (process->cgroup < -1)
		return process->cgroup;
	process->pid = clone_child(EARLY, process->cgroup);
	if (process->pid == 0) {
		int given[] = {pipes.stdio[WIRE_STDIN][0],
			       pipes.stdio[WIRE_STDOUT][1],
			       pipes.stdio[WIRE_STDERR][1],
			       pipes.status[1],
			       pipes.start[0],
			       go_end,
			       spare.plan};
		_Static_assert(sizeof(given) / sizeof(*given) == CHILD_DESCRIPTORS_OF_SPARE, "descriptors of a spare");
		child_wait(given, process->words);
	}
	if (process->pid < 0)
		return -errno;
	close_fd(&pipes.status[1]); /* so that a death ends the wait below */
	struct status_record record;
	if (read(pipes.status[0], &record, sizeof(record)) != (ssize_t)sizeof(record) || record.kind != STATUS_SPARE)
		return -ECHILD;
	process_take_ends(process, &pipes);
	return 0;
}

void spare_make(void)
{
	discard();
	spare.process = process_new(CONTAINER);
	if (!spare.process)
		return;
	int error = spawn(spare.process);
	if (error) {
		log_error("no spare", -error);
		discard();
	}
}

static int hand_over(const uint8_t *plan, size_t size, uint64_t flags)
{
	struct child_go go = {.namespaces = flags & LATE, .size = size};

	for (size_t done = 0; done < size;) {
		ssize_t put = write(spare.plan, plan + done, size - done);
		if (put < 0)
			return -errno;
		done += (size_t)put;
	}
	return write(spare.go, &go, sizeof(go)) == (ssize_t)sizeof(go) ? 0 : -EPIPE;
}

struct process *spare_take(uint16_t container, const uint8_t *plan, size_t size)
{
	struct process *process = spare.process;
	uint64_t flags = plan_head(plan).clone_flags;

	if (!process || container != CONTAINER)
		return NULL;
	if (flags != (EARLY | LATE) || hand_over(plan, size, flags) < 0) {
		discard();
		return NULL;
	}
	forget();
	return process;
}

void spare_reaped(pid_t pid)
{
	if (!spare.process || spare.process->pid != pid)
		return;
	spare.process->pid = -1;
	discard();
}
