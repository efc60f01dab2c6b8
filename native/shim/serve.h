/* The shim's conversations: one with the agent, one with each client. */
#ifndef RUNDCTL_SHIM_SERVE_H
#define RUNDCTL_SHIM_SERVE_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "framing.h"
#include "monitor.h"
#include "shim.h"
#include "streams.h"

enum {
	CLIENTS_MAX = 64,
	REQUESTS_MAX = 64,	      /* forwarded and not answered */
	UNREAD_MAX = 64 * 1024,	      /* bytes of results a client may leave unread */
	UNSENT_MAX = 8 * 1024 * 1024, /* bytes of requests the agent may leave unread */
	AHEAD_MAX = 4 * 1024,	      /* of credit, and of stdin: no more is queued, as a guest that does not read would provoke it without end */
};

struct client {
	struct conn conn;
	uint32_t id; /* 0: the place is free */
};

/* A request that was forwarded to the agent and has no RESULT yet. */
struct request {
	uint32_t client;	 /* its id; that client may be gone */
	struct wire_header head; /* as the client sent it; tag 0: the place is free */
};

struct shim {
	const struct options *options;
	pid_t qemu; /* 0: ended */
	int signals;
	int control;
	bool words_rest;    /* QEMU has just said something, a letter perhaps: more of it is waited for */
	bool control_rests; /* a connection could not be accepted: the next turn does not try again */
	int words;	    /* of QEMU and the helpers, -1: none of them lives */
	struct monitor monitor;
	bool paused; /* QEMU has confirmed that the machine stands still */
	struct conn agent;
	bool agent_active; /* HELLO was sent: not before the guest is restored */
	bool set_up;	   /* the container's plan has reached its WAIT: its process can be signalled and fed */
	bool committed;
	uint32_t creator; /* client id; 0 when it is gone */
	uint32_t last_id;
	struct client *clients; /* CLIENTS_MAX places, allocated as they are needed */
	size_t client_count;
	struct request requests[REQUESTS_MAX];
	bool fed; /* START was asked for: stdin may be read */
	struct source input;
	struct sink outputs[2]; /* stdout, stderr */
	bool kill_asked;	/* so output whose reader stalls is given up after a while */
	bool exited;		/* `ending` is known: only flushing is left */
	struct ending ending;
	unsigned long long oom_kills; /* when QEMU started */
	int64_t progress_ns;	      /* when output last moved, or when patience began to count */
	struct ending loss;	      /* what QEMU cannot do without and ended: is it because QEMU did? */
	int64_t loss_ns;	      /* when it did, 0: nothing has */
};

/* route.c: messages of clients and of the agent. */
void route_client(struct shim *shim, struct client *client, const struct message *message);
void route_agent(struct shim *shim, const struct message *message);
void drop_client(struct shim *shim, struct client *client);
/* Ends the VM: the agent broke the protocol. */
void agent_violation(struct shim *shim, const char *what);
/* Sends to the agent, first HELLO. */
void send_agent(struct shim *shim, const struct wire_header *head, const void *payload, size_t size);
/* Returns credit to the guest for bytes that left, if it reads what it gets. Whether there is something to be sent now. */
bool acknowledge(struct shim *shim);
/* Tells the guest that nobody reads a stream any more, or that stdin is at its end. */
void close_stream(struct shim *shim, enum wire_stream stream);

/* Tells the guest, once, that nobody reads an output stream. */
void refuse_output(struct shim *shim, size_t output);
/* Whether as much waits to be sent to the agent as may. */
bool agent_is_full(const struct shim *shim);

/* pause.c: PAUSE and RESUME of a client, and what QEMU says to them. */
void pause_request(struct shim *shim, struct client *client, const struct message *message);
void pause_serve(struct shim *shim);
/* route.c: the RESULT of a client's request. */
void reply(struct shim *shim, struct client *client, const struct wire_header *request, int error, const char *detail);
struct client *find_client(struct shim *shim, uint32_t id);

/* end.c: how it ends. The first that says so wins. */
/* The container ended by itself: what it wrote is flushed with all patience, then the shim ends. */
void end_container(struct shim *shim, int status, bool oom);
/* Something else ended: QEMU is killed, a creator that still waits hears `error` and `detail`, output that stalls is given up. */
void end_early(struct shim *shim, int error, int code, const char *reason, int status, const char *detail);
/* A SIGKILL or STOP was asked for: from now on stalled output is given up. */
void lose_patience(struct shim *shim);
/* Ends QEMU and the shim if all output is out or given up. */
void end_when_flushed(struct shim *shim);
/* Milliseconds until patience ends, -1 = for ever. */
int patience_ms(const struct shim *shim);
/* Writes the record, ends QEMU and the shim. */
void finish(struct shim *shim) __attribute__((noreturn));
/* CLOCK_MONOTONIC */
int64_t now_ns(void);

#endif
