#include "birth.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

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

struct process *process_new(uint16_t container)
{
	struct process *process = calloc(1, sizeof(*process));
	void *words = mmap(NULL, sizeof(*process->words), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (!process || words == MAP_FAILED) {
		free(process);
		if (words != MAP_FAILED)
			(void)munmap(words, sizeof(*process->words));
		return NULL;
	}
	*process = (struct process){
		.container = container, .status = -1, .start = -1, .words = words, .cgroup = -1, .input.fd = -1, .outputs = {{.fd = -1}, {.fd = -1}}};
	return process;
}
