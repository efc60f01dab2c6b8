/* The life of a container's first process between its clone and its exec. */
#ifndef RUNDCTL_AGENT_CHILD_H
#define RUNDCTL_AGENT_CHILD_H

#include <stdint.h>

#include "wire.h"

struct status_record;

/* What the clone inherits, by the number it gets there. All other descriptors are closed. */
enum child_descriptor {
	CHILD_STATUS = WIRE_STREAMS, /* after stdin, stdout, stderr: pipe to the agent, struct status_record */
	CHILD_START,		     /* pipe from the agent: one byte is START */
	CHILD_DESCRIPTORS,
	CHILD_GO = CHILD_DESCRIPTORS, /* a spare's only: pipe from the agent, struct child_go; closed before the plan runs */
	CHILD_PLAN,		      /* a spare's only: the file that the plan will be in */
	CHILD_DESCRIPTORS_OF_SPARE,
};

/* What makes a spare a container. */
struct child_go {
	uint64_t namespaces; /* CLONE_NEW* still to be entered */
	uint64_t size;	     /* of the plan */
};

/* Runs a checked plan. Why it fails, the agent finds in `words`. */
void child_run(const int given[CHILD_DESCRIPTORS], struct status_record *words, const uint8_t *plan) __attribute__((noreturn));
/* Reports STATUS_SPARE, waits for the plan, runs it. */
void child_wait(const int given[CHILD_DESCRIPTORS_OF_SPARE], struct status_record *words) __attribute__((noreturn));

#endif
