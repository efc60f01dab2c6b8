/* The shim's conversations: one with the agent, one with each client. */
#ifndef RUNDCTL_SHIM_SERVE_H
#define RUNDCTL_SHIM_SERVE_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "framing.h"
#include "shim.h"
#include "streams.h"

enum { CLIENTS_MAX = 64, REQUESTS_MAX = 64, UNREAD_MAX = 64 * 1024 };

struct client {
	struct conn conn;
	uint32_t id; /* 0: the place is free */
};

/* A request that was forwarded to the agent and has no RESULT yet. */
struct request {
	uint32_t client; /* its id; that client may be gone */
	struct wire_header head; /* as the client sent it; tag 0: the place is free */
};

struct shim {
	const struct options *options;
	pid_t qemu; /* 0: ended */
	int signals;
	int control;
	int qmp;
	struct conn agent;
	bool agent_active; /* HELLO was sent: not before the guest is restored */
	bool set_up;	   /* the container's plan has reached its WAIT: its process can be signalled and fed */
	bool committed;
	uint32_t creator; /* client id; 0 when it is gone */
	uint32_t last_id;
	struct client *clients; /* CLIENTS_MAX places, allocated as they are needed */
	size_t client_count;
	struct request requests[REQUESTS_MAX];
	struct source input;
	struct sink outputs[2]; /* stdout, stderr */
	bool kill_asked;
	bool exited; /* EXITED has come: only flushing is left */
	struct ending ending;
	int64_t progress_ns; /* when output last moved, once exited */
};

/* route.c: messages of clients and of the agent. */
void route_client(struct shim *shim, struct client *client, const struct message *message);
void route_agent(struct shim *shim, const struct message *message);
void drop_client(struct shim *shim, struct client *client);
/* Sends to the agent, first HELLO. */
void send_agent(struct shim *shim, const struct wire_header *head, const void *payload, size_t size);
/* Returns credit to the guest for bytes that left. */
void acknowledge(struct shim *shim, size_t output, size_t size);
/* Tells the guest that nobody reads a stream any more, or that stdin is at its end. */
void close_stream(struct shim *shim, enum wire_stream stream);

/* serve.c: writes the record, ends QEMU and the shim. */
void finish(struct shim *shim, int code, const char *reason, int status, const char *detail) __attribute__((noreturn));

#endif
