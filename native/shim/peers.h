/* What the shim says to the agent and to its clients. */
#ifndef RUNDCTL_SHIM_PEERS_H
#define RUNDCTL_SHIM_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "shim.h"

/* Nothing more is heard from the agent, and nothing said to it. */
void close_agent(struct shim *shim);
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

/* The RESULT of a client's request. */
void reply(struct shim *shim, struct client *client, const struct wire_header *request, int error, const char *detail);
/* NULL: it is gone. */
struct client *find_client(struct shim *shim, uint32_t id);
/* Its connection is closed; the creator's, before COMMIT, ends the VM. */
void drop_client(struct shim *shim, struct client *client);

#endif
