/* The shim: one per container on the host (docs/adr/0003-process-model.md). Its state, with a conversation with the agent and one with each client. */
#ifndef RUNDCTL_SHIM_SHIM_H
#define RUNDCTL_SHIM_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "framing.h"
#include "monitor.h"
#include "options.h"
#include "record.h"
#include "streams.h"

enum {
	THE_CONTAINER = 1, /* its number in frames */
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
	int date;		/* -1: none */
	int64_t date_offset_ns; /* how far the date was from CLOCK_BOOTTIME, at least, when the guest was told last */
	bool paused;		/* QEMU has confirmed that the machine stands still */
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

#endif
