/* A process the agent started: its pid, pipes and streams, from PLAN to EXITED. */
#ifndef RUNDCTL_AGENT_PROCESS_H
#define RUNDCTL_AGENT_PROCESS_H

#include <poll.h>
#include <stdbool.h>
#include <sys/types.h>

#include "backlog.h"
#include "credit.h"
#include "framing.h"
#include "plan.h"
#include "wire.h"

enum { OUTPUTS = 2, PROCESS_POLLS = 2 + OUTPUTS };

/* stdin: bytes from the host that wait until the container reads. */
struct input {
	int fd; /* -1: closed */
	struct backlog backlog;
	struct credit credit; /* outstanding: bytes in `backlog` and those not yet acknowledged */
	uint32_t written;     /* bytes that left, not yet acknowledged */
	bool ended;	      /* the host sends no more */
};

/* stdout or stderr. */
struct output {
	int fd; /* -1: at end of file, or nobody reads any more */
	enum wire_stream stream;
	struct credit credit;
};

struct process {
	uint16_t container;
	uint32_t number; /* 0: the container's init */
	pid_t pid;
	uint32_t plan_tag;  /* != 0: PLAN is not yet answered */
	uint32_t start_tag; /* != 0: START is not yet answered */
	bool ready;	    /* waits for START, or did */
	bool started;	    /* the exec is done */
	bool reaped;
	int exit_status;
	int asked_signal;	      /* a fatal signal that came before the exec and was sent as SIGKILL */
	int status;		      /* pipe with struct status_record; -1 after its end */
	struct status_record *words;  /* shared with the child until its exec: why it fails */
	int start;		      /* pipe for START's byte; -1 after it */
	int cgroup;		      /* -1: none */
	struct status_record failure; /* .kind STATUS_FAILED: the plan failed; STATUS_NO_PROGRAM: only its exec, which was told */
	struct input input;
	struct output outputs[OUTPUTS];
};

/* process.c. Answers and events go to `conn`. */
void process_free(struct process *process);
void process_start(struct process *process, struct conn *conn, const struct wire_header *request);
int process_signal(struct process *process, struct conn *conn, const struct wire_signal *signal);
void process_reap(struct process *process, int exit_status);
void process_read_status(struct process *process, struct conn *conn);
/* Does what has become possible; false when the process is over and all is said about it. */
bool process_advance(struct process *process, struct conn *conn);

/* stream.c */
void stream_receive(struct process *process, struct conn *conn, const struct message *message);
void stream_polls(const struct process *process, const struct conn *conn, struct pollfd polls[WIRE_STREAMS]);
void stream_serve(struct process *process, struct conn *conn, const struct pollfd polls[WIRE_STREAMS]);
/* Sends a line of the agent's as the process' own stderr. */
void stream_complain(struct process *process, struct conn *conn, const char *line);
void stream_close(struct process *process);
bool stream_drained(const struct process *process);

/* send.c: these wait for memory rather than lose a message: a lost one would hang the peer. */
void send_message(struct conn *conn, const struct wire_header *head, const void *payload, size_t size);
void send_result(struct conn *conn, const struct wire_header *request, int error, uint32_t index, const char *detail);
void send_violation(struct conn *conn, const char *detail);

#endif
