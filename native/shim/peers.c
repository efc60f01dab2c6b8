#include "peers.h"

#include <errno.h>
#include <stdio.h>

#include "end.h"

/* Requests that the agent has not answered: a flush may go on for as long as a reader stalls it, and nobody shall wait for it. The creator of what is
 * not complete is told by the shim's last word why. */
void close_agent(struct shim *shim)
{
	conn_close(&shim->agent);
	for (size_t i = 0; i < REQUESTS_MAX; i++) {
		struct request request = shim->requests[i];
		struct client *client = find_client(shim, request.client);

		shim->requests[i] = (struct request){0};
		if (request.head.tag && client && (shim->committed || request.client != shim->creator))
			reply(shim, client, &request.head, ECHILD, "the VM has ended");
	}
}

/* Nothing more is heard from an agent that lies: the VM ends. */
void agent_violation(struct shim *shim, const char *what)
{
	char detail[sizeof(shim->ending.detail)];

	(void)snprintf(detail, sizeof(detail), "protocol violation: %s", what);
	end_early(shim, EPROTO, 255, "agent", 0, detail);
	close_agent(shim);
}

bool agent_is_full(const struct shim *shim)
{
	return conn_queued(&shim->agent) > UNSENT_MAX;
}

void send_agent(struct shim *shim, const struct wire_header *head, const void *payload, size_t size)
{
	int error = 0;

	if (shim->agent.fd < 0)
		return;
	if (!shim->agent_active) {
		error = conn_send_hello(&shim->agent, WIRE_ROLE_SHIM);
		shim->agent_active = true;
	}
	if (!error)
		error = conn_send(&shim->agent, head, payload, size);
	if (error)
		end_early(shim, ENOMEM, 255, "internal", 0, "out of memory");
}

bool acknowledge(struct shim *shim)
{
	bool sent = false;

	for (size_t i = 0; i < 2 && !shim->exited; i++) {
		struct sink *sink = &shim->outputs[i];
		struct wire_header head = {.type = WIRE_CREDIT, .container = THE_CONTAINER, .flags = (uint8_t)(i + WIRE_STDOUT)};

		if (!sink->owed || shim->agent.control.size > AHEAD_MAX)
			continue;
		(void)credit_return(&sink->credit, sink->owed);
		send_agent(shim, &head, &sink->owed, sizeof(sink->owed));
		sink->owed = 0;
		sent = true;
	}
	return sent;
}

void close_stream(struct shim *shim, enum wire_stream stream)
{
	struct wire_header head = {.type = WIRE_CLOSE, .container = THE_CONTAINER, .flags = (uint8_t)stream};

	if (!shim->exited)
		send_agent(shim, &head, NULL, 0);
}

void refuse_output(struct shim *shim, size_t output)
{
	struct sink *sink = &shim->outputs[output];

	if (!sink->ended && !sink->refused)
		close_stream(shim, (enum wire_stream)(output + WIRE_STDOUT));
	sink->refused = true;
}

struct client *find_client(struct shim *shim, uint32_t id)
{
	for (size_t i = 0; i < shim->client_count; i++)
		if (id && shim->clients[i].id == id)
			return &shim->clients[i];
	return NULL;
}

void drop_client(struct shim *shim, struct client *client)
{
	uint32_t id = client->id;

	conn_close(&client->conn);
	client->id = 0;
	if (id != shim->creator)
		return;
	shim->creator = 0;
	if (!shim->committed)
		end_early(shim, 0, 255, "creator", 0, "the creator went away before the container was complete");
}

void reply(struct shim *shim, struct client *client, const struct wire_header *request, int error, const char *detail)
{
	if (conn_send_result(&client->conn, request, error, 0, detail))
		drop_client(shim, client);
}
