/* The three streams of a process: pipes on one side, DATA, CREDIT and CLOSE on the other. */
#include <fcntl.h>
#include <string.h>

#include "process.h"

enum {
	QUEUE_MAX = 2 * WIRE_PAYLOAD_MAX, /* bytes waiting for the channel, above which no pipe is read */
	CREDIT_STEP = WIRE_WINDOW / 4,	  /* acknowledge in steps, not byte by byte */
};

static struct wire_header head_for(const struct process *process, enum wire_type type, enum wire_stream stream)
{
	return (struct wire_header){.type = (uint8_t)type, .flags = (uint8_t)stream, .container = process->container, .process = process->number};
}

static void send_close(const struct process *process, struct conn *conn, enum wire_stream stream)
{
	struct wire_header head = head_for(process, WIRE_CLOSE, stream);

	send_message(conn, &head, NULL, 0);
}

/* stdin */

static void close_input(struct input *input)
{
	close_fd(&input->fd);
	backlog_clear(&input->backlog);
}

static void acknowledge(struct process *process, struct conn *conn)
{
	struct input *input = &process->input;
	struct wire_header head = head_for(process, WIRE_CREDIT, WIRE_STDIN);

	if (input->written == 0 || (input->backlog.size && input->written < CREDIT_STEP))
		return;
	credit_return(&input->credit, input->written);
	send_message(conn, &head, &input->written, sizeof(input->written));
	input->written = 0;
}

/* Writes what fits. A container that closed its stdin is told to the sender once; what waited for it is dropped. */
static void write_input(struct process *process, struct conn *conn)
{
	struct input *input = &process->input;

	while (input->fd >= 0 && input->backlog.size) {
		ssize_t put = write(input->fd, backlog_head(&input->backlog), input->backlog.size);
		if (put < 0 && errno == EAGAIN)
			break;
		if (put < 0) {
			close_input(input);
			send_close(process, conn, WIRE_STDIN);
			return;
		}
		backlog_consume(&input->backlog, (size_t)put);
		input->written += (uint32_t)put;
	}
	acknowledge(process, conn);
	if (input->ended && input->backlog.size == 0)
		close_input(input);
}

static void receive_input(struct process *process, struct conn *conn, const struct message *message)
{
	struct input *input = &process->input;

	if (input->fd < 0)
		return; /* crossed our CLOSE */
	if (input->ended || !credit_spend(&input->credit, message->size)) {
		send_violation(conn, "data without credit");
		return;
	}
	if (!backlog_append(&input->backlog, message->payload, message->size)) {
		close_input(input); /* out of memory: better an early end of file than a gap */
		send_close(process, conn, WIRE_STDIN);
		return;
	}
	write_input(process, conn);
}

/* stdout and stderr */

static void receive_credit(struct output *output, struct conn *conn, const struct message *message)
{
	uint32_t bytes;

	memcpy(&bytes, message->payload, sizeof(bytes));
	if (!credit_return(&output->credit, bytes))
		send_violation(conn, "credit for bytes that were not sent");
}

static void read_output(struct process *process, struct output *output, struct conn *conn)
{
	uint8_t bytes[WIRE_PAYLOAD_MAX]; /* on the stack: only the pages that are filled are ever touched */
	struct wire_header head = head_for(process, WIRE_DATA, output->stream);
	size_t room = credit_room(&output->credit);
	ssize_t got = read(output->fd, bytes, room < sizeof(bytes) ? room : sizeof(bytes));

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		close_fd(&output->fd);
		send_close(process, conn, output->stream);
		return;
	}
	credit_spend(&output->credit, (size_t)got);
	send_message(conn, &head, bytes, (size_t)got);
}

void stream_complain(struct process *process, struct conn *conn, const char *line)
{
	struct output *output = &process->outputs[process->words->joined ? 0 : WIRE_STDERR - WIRE_STDOUT];
	struct wire_header head = head_for(process, WIRE_DATA, output->stream);
	size_t length = strlen(line);

	if (output->fd >= 0 && credit_spend(&output->credit, length))
		send_message(conn, &head, line, length);
}

/* all three */

/* The bytes of one frame that has a stream; the caller has checked that the process exists. */
void stream_receive(struct process *process, struct conn *conn, const struct message *message)
{
	unsigned stream = message->head.flags & WIRE_STREAM_MASK;
	uint8_t type = message->head.type;
	bool fits = type == WIRE_CREDIT ? message->size == sizeof(uint32_t) : type == WIRE_DATA || message->size == 0;

	if (stream >= WIRE_STREAMS || !fits || (type == WIRE_DATA && stream != WIRE_STDIN) || (type == WIRE_CREDIT && stream == WIRE_STDIN)) {
		send_violation(conn, "bad stream");
	} else if (type == WIRE_DATA) {
		receive_input(process, conn, message);
	} else if (type == WIRE_CREDIT) {
		receive_credit(&process->outputs[stream - WIRE_STDOUT], conn, message);
	} else if (stream == WIRE_STDIN) {
		process->input.ended = true;
		write_input(process, conn);
	} else {
		close_fd(&process->outputs[stream - WIRE_STDOUT].fd); /* the container gets SIGPIPE */
	}
}

/* What to wait for, by stream. Without POLLOUT stdin still tells, by POLLERR, that nobody reads it any more. */
void stream_polls(const struct process *process, const struct conn *conn, struct pollfd polls[WIRE_STREAMS])
{
	bool channel_free = conn_queued(conn) < QUEUE_MAX;

	polls[WIRE_STDIN] = (struct pollfd){.fd = process->input.fd, .events = process->input.backlog.size ? POLLOUT : 0};
	for (unsigned i = 0; i < OUTPUTS; i++) {
		const struct output *output = &process->outputs[i];
		bool wanted = channel_free && credit_room(&output->credit) > 0;
		polls[output->stream] = (struct pollfd){.fd = wanted ? output->fd : -1, .events = POLLIN};
	}
}

void stream_serve(struct process *process, struct conn *conn, const struct pollfd polls[WIRE_STREAMS])
{
	if (process->input.fd >= 0 && (polls[WIRE_STDIN].revents & POLLERR)) {
		close_input(&process->input);
		send_close(process, conn, WIRE_STDIN);
	} else if (process->input.fd >= 0 && polls[WIRE_STDIN].revents) {
		write_input(process, conn);
	}
	for (unsigned i = 0; i < OUTPUTS; i++)
		if (process->outputs[i].fd >= 0 && polls[process->outputs[i].stream].revents)
			read_output(process, &process->outputs[i], conn);
}

void stream_close(struct process *process)
{
	close_input(&process->input);
	for (unsigned i = 0; i < OUTPUTS; i++)
		close_fd(&process->outputs[i].fd);
}

bool stream_drained(const struct process *process)
{
	return process->outputs[0].fd < 0 && process->outputs[1].fd < 0;
}
