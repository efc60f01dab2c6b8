/* What the two ways to a container's first process share: spawn.c makes one for a plan, spare.c ahead of any. */
#ifndef RUNDCTL_AGENT_BIRTH_H
#define RUNDCTL_AGENT_BIRTH_H

#include "process.h"

/* Read end 0, write end 1. */
struct pipes {
	int stdio[WIRE_STREAMS][2];
	int status[2];
	int start[2];
};

int pipes_open(struct pipes *pipes);
void pipes_close(struct pipes *pipes);
#define cleanup_pipes __attribute__((cleanup(pipes_close)))

/* A process without anything yet; NULL without memory. */
struct process *process_new(uint16_t container);
/* Moves the agent's ends to the process. */
void process_take_ends(struct process *process, struct pipes *pipes);
/* As fork(2) with namespaces and a cgroup (-1: the agent's own): 0 in the child, -1 and errno. */
pid_t clone_child(uint64_t namespaces, int cgroup);

#endif
