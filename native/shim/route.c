#include "route.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "end.h"
#include "pause.h"
#include "peers.h"
#include "record.h"

/* A client */

static bool is_forwarded(uint8_t type)
{
	return type == WIRE_IDENTITY || type == WIRE_PLAN || type == WIRE_START || type == WIRE_SIGNAL || type == WIRE_READ || type == WIRE_PROCESSES;
}

static void note_signal(struct shim *shim, const struct message *message)
{
	struct wire_signal sent;

	if (message->size != sizeof(sent))
		return;
	memcpy(&sent, message->payload, sizeof(sent));
	if (sent.signal == SIGKILL)
		lose_patience(shim);
}

/* The container is about to run: now its stdin may be read, and what the host closed is closed for it. */
static void feed(struct shim *shim)
{
	if (shim->fed)
		return;
	shim->fed = true;
	if (shim->input.end.fd < 0)
		close_stream(shim, WIRE_STDIN);
	for (size_t i = 0; i < 2; i++)
		if (shim->outputs[i].end.fd < 0)
			refuse_output(shim, i);
}

static void note_request(struct shim *shim, const struct message *message)
{
	if (message->head.container != THE_CONTAINER || message->head.process != 0)
		return;
	if (message->head.type == WIRE_SIGNAL)
		note_signal(shim, message);
	else if (message->head.type == WIRE_START)
		feed(shim);
}

/* A machine that stands still answers nothing: the signal waits for it, and its sender does not, as with runc. */
static void leave_signal(struct shim *shim, struct client *client, const struct message *message)
{
	struct wire_header head = message->head;

	if (agent_is_full(shim)) {
		reply(shim, client, &message->head, ENOBUFS, "too many signals for a paused container");
		return;
	}
	head.tag = 0;
	send_agent(shim, &head, message->payload, message->size);
	note_request(shim, message);
	reply(shim, client, &message->head, 0, NULL);
}

/* Whose agent does not speak any more: the VM is about to end. A SIGKILL still ends a flush that a stalled reader holds up. */
static void refuse(struct shim *shim, struct client *client, const struct message *message)
{
	if (message->head.type == WIRE_SIGNAL)
		note_request(shim, message);
	reply(shim, client, &message->head, ECHILD, "the VM has ended");
}

/* Its tag is replaced by the request's place in the table, so that tags of several clients cannot be confused. */
static void forward(struct shim *shim, struct client *client, const struct message *message)
{
	for (uint32_t i = 0; i < REQUESTS_MAX; i++) {
		struct wire_header head = message->head;

		if (shim->requests[i].head.tag || agent_is_full(shim))
			continue;
		shim->requests[i] = (struct request){.client = client->id, .head = message->head};
		head.tag = i + 1;
		send_agent(shim, &head, message->payload, message->size);
		note_request(shim, message);
		return;
	}
	reply(shim, client, &message->head, ENOBUFS, "too many requests at once");
}

/* What runs has to be seen as running: without a place for the mark nothing is started, and can be once there is one. */
static void start(struct shim *shim, struct client *client, const struct message *message)
{
	int error = record_starting(shim->options->state);

	if (error)
		reply(shim, client, &message->head, -error, "mark it as started");
	else
		forward(shim, client, message);
}

static void commit(struct shim *shim, struct client *client, const struct message *message)
{
	if (client->id != shim->creator || !shim->set_up) {
		reply(shim, client, &message->head, EPERM, "nothing to commit");
		return;
	}
	shim->committed = true;
	reply(shim, client, &message->head, 0, NULL);
}

/* Also ends a flush that a stalled reader holds up. */
static void stop(struct shim *shim, struct client *client, const struct message *message)
{
	reply(shim, client, &message->head, 0, NULL);
	lose_patience(shim);
	end_early(shim, EINTR, 128 + SIGKILL, "stopped", 0, "stopped by request");
}

void route_client(struct shim *shim, struct client *client, const struct message *message)
{
	if (message->head.type == WIRE_HELLO)
		return;
	if (message->head.tag == 0) {
		if (message->head.type < 0x80)
			drop_client(shim, client);
		return;
	}
	if (message->head.type == WIRE_COMMIT)
		commit(shim, client, message);
	else if (message->head.type == WIRE_STOP)
		stop(shim, client, message);
	else if (message->head.type == WIRE_PAUSE || message->head.type == WIRE_RESUME)
		pause_request(shim, client, message);
	else if (is_forwarded(message->head.type) && shim->agent.fd < 0)
		refuse(shim, client, message);
	else if (message->head.type == WIRE_SIGNAL && shim->paused)
		leave_signal(shim, client, message);
	else if (message->head.type == WIRE_START)
		start(shim, client, message);
	else if (is_forwarded(message->head.type))
		forward(shim, client, message);
	else
		reply(shim, client, &message->head, EOPNOTSUPP, "unknown request");
	if (client->id && conn_queued(&client->conn) > UNREAD_MAX)
		drop_client(shim, client);
}

/* The agent: a hostile guest speaks here. */

static void note_result(struct shim *shim, const struct wire_header *request, int error)
{
	if (error || request->container != THE_CONTAINER || request->process != 0)
		return;
	if (request->type == WIRE_PLAN)
		shim->set_up = true;
	else if (request->type == WIRE_START)
		record_started(shim->options->state);
}

/* The agent says that we broke the protocol. Its words go into a record of lines, so only plain characters do. */
static void take_complaint(struct shim *shim, const struct message *message)
{
	char detail[sizeof(shim->ending.detail)];
	int length = (int)(message->size - sizeof(struct wire_result));

	(void)snprintf(detail, sizeof(detail), "%.*s", length, (const char *)message->payload + sizeof(struct wire_result));
	for (char *c = detail; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	end_early(shim, EPROTO, 255, "agent", 0, detail);
	close_agent(shim);
}

static void take_result(struct shim *shim, const struct message *message)
{
	uint32_t place = message->head.tag - 1;
	struct wire_header head = message->head;
	struct wire_result result;
	struct request request;
	struct client *client;

	if (message->head.tag == 0 && message->size >= sizeof(result)) {
		take_complaint(shim, message);
		return;
	}
	if (message->size < sizeof(result) || place >= REQUESTS_MAX || !shim->requests[place].head.tag) {
		agent_violation(shim, "a result nobody asked for");
		return;
	}
	request = shim->requests[place];
	shim->requests[place] = (struct request){0};
	memcpy(&result, message->payload, sizeof(result));
	note_result(shim, &request.head, result.error);
	client = find_client(shim, request.client);
	head.tag = request.head.tag;
	if (client && (conn_send(&client->conn, &head, message->payload, message->size) || conn_queued(&client->conn) > UNREAD_MAX))
		drop_client(shim, client);
}

static void take_data(struct shim *shim, const struct message *message, unsigned int stream)
{
	struct sink *sink;

	if (stream != WIRE_STDOUT && stream != WIRE_STDERR) {
		agent_violation(shim, "data on a stream that is not output");
		return;
	}
	sink = &shim->outputs[stream - WIRE_STDOUT];
	if (sink->ended || !credit_spend(&sink->credit, message->size)) {
		agent_violation(shim, "data without credit");
	} else if (sink->end.fd < 0) { /* nobody reads any more, as the guest will hear: it is gone */
		(void)credit_return(&sink->credit, message->size);
		refuse_output(shim, stream - WIRE_STDOUT);
	} else if (!backlog_append(&sink->backlog, message->payload, message->size)) {
		end_early(shim, ENOMEM, 255, "internal", 0, "out of memory");
	}
}

static void take_credit(struct shim *shim, const struct message *message, unsigned int stream)
{
	uint32_t bytes;

	if (stream != WIRE_STDIN || message->size != sizeof(bytes)) {
		agent_violation(shim, "a wrong credit");
		return;
	}
	memcpy(&bytes, message->payload, sizeof(bytes));
	if (!credit_return(&shim->input.credit, bytes))
		agent_violation(shim, "credit for more than was sent");
}

static void take_close(struct shim *shim, unsigned int stream)
{
	if (stream == WIRE_STDIN)
		endpoint_close(&shim->input.end);
	else if (stream == WIRE_STDOUT || stream == WIRE_STDERR)
		shim->outputs[stream - WIRE_STDOUT].ended = true;
	else
		agent_violation(shim, "a wrong stream");
}

static void take_exited(struct shim *shim, const struct message *message)
{
	struct wire_exited exited;

	if (message->size != sizeof(exited)) {
		agent_violation(shim, "a wrong end");
		return;
	}
	memcpy(&exited, message->payload, sizeof(exited));
	end_container(shim, exited.status, exited.flags & WIRE_EXITED_OOM);
}

void route_agent(struct shim *shim, const struct message *message)
{
	unsigned int stream = message->head.flags & WIRE_STREAM_MASK;

	if (message->head.type == WIRE_RESULT) {
		take_result(shim, message);
		return;
	}
	if (message->head.type == WIRE_HELLO || message->head.type >= 0x80 || shim->exited)
		return;
	if (message->head.container != THE_CONTAINER || message->head.process != 0) {
		agent_violation(shim, "a process nobody started");
		return;
	}
	switch (message->head.type) {
	case WIRE_DATA:
		take_data(shim, message, stream);
		break;
	case WIRE_CREDIT:
		take_credit(shim, message, stream);
		break;
	case WIRE_CLOSE:
		take_close(shim, stream);
		break;
	case WIRE_EXITED:
		take_exited(shim, message);
		break;
	default:
		agent_violation(shim, "an unknown message");
	}
}
