/* The shim's loop: poll(2), because regular files may be stdio and epoll refuses them. */
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "date.h"
#include "end.h"
#include "log.h"
#include "oom.h"
#include "pause.h"
#include "peers.h"
#include "root.h"
#include "route.h"
#include "shim.h"

enum {
	POLL_SIGNALS,
	POLL_CONTROL,
	POLL_AGENT,
	POLL_QMP,
	POLL_DATE,
	POLL_WORDS,
	POLL_INPUT,
	POLL_OUTPUTS,
	POLL_CLIENTS = POLL_OUTPUTS + 2,
	POLLS_MAX = POLL_CLIENTS + CLIENTS_MAX,
	INPUT_SIZE = 16 * 1024,
	REST_MS = 100,	    /* before a connection is accepted for which there was no descriptor, if nothing else happens */
	WORDS_REST_MS = 10, /* a guest's console comes letter by letter, and the pipe holds more than can come in this time */
	LOSS_MS = 2000,	    /* how long QEMU may outlive its end of the agent's channel, or a helper that served it */
	READS_PER_TURN = 8, /* so that a peer that floods holds nobody else up */
};

/* Takes what has come, at most `reads` times; returns what the last read returned. */
static int read_agent(struct shim *shim, int reads)
{
	struct message message;
	int got, found;

	do {
		got = conn_read(&shim->agent);
		while ((found = conn_next(&shim->agent, &message)) > 0)
			route_agent(shim, &message);
		if (found < 0)
			agent_violation(shim, found == -EPROTONOSUPPORT ? "another version" : "a malformed frame");
	} while (got == CONN_READ && shim->agent.fd >= 0 && --reads);
	return got;
}

/* QEMU's end of the channel closes with QEMU, and a helper ends when QEMU does. SIGCHLD tells better how that went: it is given a moment to come. */
static void note_loss(struct shim *shim, const char *reason, int status, const char *detail)
{
	if (shim->loss_ns)
		return;
	shim->loss_ns = clock_ns(CLOCK_MONOTONIC);
	shim->loss = (struct ending){.reason = reason, .status = status};
	(void)snprintf(shim->loss.detail, sizeof(shim->loss.detail), "%s", detail);
}

static void serve_agent(struct shim *shim)
{
	int got = read_agent(shim, READS_PER_TURN);

	if (got == CONN_AGAIN || got == CONN_READ)
		return;
	if (got == -ENOMEM)
		end_early(shim, ENOMEM, 255, "internal", 0, "out of memory");
	close_agent(shim);
	note_loss(shim, "agent", 0, "the agent's channel closed");
}

static void describe_end(char *detail, size_t size, const char *name, int status)
{
	if (WIFSIGNALED(status))
		(void)snprintf(detail, size, "%s was killed by signal %d", name, WTERMSIG(status));
	else
		(void)snprintf(detail, size, "%s exited with status %d", name, WEXITSTATUS(status));
}

/* What QEMU maps are files of the host's. */
static void describe_end_of_qemu(char *detail, size_t size, int status)
{
	describe_end(detail, size, "qemu", status);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)
		(void)snprintf(detail, size,
			       "qemu was killed by signal %d: a file that it maps, the rootfs' image or the template's memory, was cut short or "
			       "could not be read; see rundctl image verify",
			       SIGBUS);
}

static bool ran_out_of_memory(const struct shim *shim)
{
	return oom_kills(shim->options->oom_events) > shim->oom_kills;
}

static void end_by_oom(struct shim *shim, int status)
{
	if (shim->exited)
		return;
	end_early(shim, ECHILD, 128 + SIGKILL, "oom", status, "the host killed the VM: its cgroup ran out of memory");
	shim->ending.oom = true;
}

/* A guest waits for ever for files that nobody serves any more. Who was killed did not end because QEMU had. Who exits may have lost a child of its
 * own to the kernel. */
static void helper_ended(struct shim *shim, struct helper *helper, int status)
{
	bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	char detail[64];

	helper->pid = 0;
	describe_end(detail, sizeof(detail), helper->name, status);
	if ((killed || WIFEXITED(status)) && ran_out_of_memory(shim))
		end_by_oom(shim, status);
	else if (WIFSIGNALED(status))
		end_early(shim, ECHILD, 255, helper->name, status, detail);
	else
		note_loss(shim, helper->name, status, detail);
}

/* QEMU is gone. The agent may have said before why: what waits in its socket is heard first. */
static void qemu_ended(struct shim *shim, int status)
{
	bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	char detail[sizeof(shim->ending.detail)];

	shim->qemu = 0;
	while (shim->agent.fd >= 0 && read_agent(shim, READS_PER_TURN) == CONN_READ)
		;
	describe_end_of_qemu(detail, sizeof(detail), status);
	if (killed && ran_out_of_memory(shim))
		end_by_oom(shim, status);
	else
		end_early(shim, ECHILD, killed ? 128 + SIGKILL : 255, "qemu", status, detail);
	close_agent(shim);
}

static void reap(struct shim *shim)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == shim->qemu)
			qemu_ended(shim, status);
		for (size_t i = 0; i < shim->options->helper_count; i++)
			if (pid == shim->options->helpers[i].pid)
				helper_ended(shim, &shim->options->helpers[i], status);
	}
}

static bool ends_what_is_not_set_up(uint32_t number)
{
	return number == SIGTERM || number == SIGINT || number == SIGQUIT || number == SIGHUP;
}

static void forward_signal(struct shim *shim, uint32_t number)
{
	struct wire_header head = {.type = WIRE_SIGNAL, .container = THE_CONTAINER};
	struct wire_signal payload = {.signal = number};

	if (shim->set_up && !agent_is_full(shim))
		send_agent(shim, &head, &payload, sizeof(payload));
	else if (!shim->set_up && ends_what_is_not_set_up(number))
		end_early(shim, EINTR, 128 + (int)number, "stopped", 0, "a signal came before the container was complete");
}

static void read_signals(struct shim *shim)
{
	struct signalfd_siginfo info;

	while (read(shim->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			reap(shim);
		/* Our own writes to a pipe without reader raise SIGPIPE, and a blocked signal is queued even if it is ignored. */
		else if (info.ssi_pid != (uint32_t)getpid())
			forward_signal(shim, info.ssi_signo);
	}
}

/* A hang-up is judged by the end of file alone: COMMIT may be the last thing the creator said. */
static void read_client(struct shim *shim, struct client *client)
{
	struct message message;
	int got, found = 0, reads = READS_PER_TURN;

	do {
		got = conn_read(&client->conn);
		while (client->id && (found = conn_next(&client->conn, &message)) > 0)
			route_client(shim, client, &message);
	} while (client->id && found >= 0 && got == CONN_READ && --reads);
	if (client->id && (found < 0 || got < 0 || got == CONN_CLOSED))
		drop_client(shim, client);
}

static struct client *new_client(struct shim *shim)
{
	struct client *grown;

	for (size_t i = 0; i < shim->client_count; i++)
		if (!shim->clients[i].id)
			return &shim->clients[i];
	if (shim->client_count == CLIENTS_MAX)
		return NULL;
	grown = realloc(shim->clients, (shim->client_count + 1) * sizeof(*grown));
	if (!grown)
		return NULL;
	shim->clients = grown;
	return &grown[shim->client_count++];
}

/* 0 when it could not be taken. */
static uint32_t add_client(struct shim *shim, int fd)
{
	struct client *client = new_client(shim);

	if (!client) {
		close(fd);
		return 0;
	}
	*client = (struct client){0};
	if (conn_open(&client->conn, fd, WIRE_MESSAGE_MAX) || conn_send_hello(&client->conn, WIRE_ROLE_SHIM)) {
		conn_close(&client->conn);
		return 0;
	}
	return client->id = ++shim->last_id;
}

static void accept_clients(struct shim *shim)
{
	int fd;

	while ((fd = accept4(shim->control, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		(void)add_client(shim, fd);
	shim->control_rests = errno != EAGAIN;
}

static void read_input(struct shim *shim)
{
	struct wire_header head = {.type = WIRE_DATA, .container = THE_CONTAINER, .flags = WIRE_STDIN};
	uint8_t bytes[INPUT_SIZE];
	size_t room = credit_room(&shim->input.credit);
	ssize_t got = endpoint_read(&shim->input.end, bytes, room < sizeof(bytes) ? room : sizeof(bytes));

	shim->input.eager = got != -EAGAIN;
	if (got == -EAGAIN)
		return;
	if (got <= 0) {
		endpoint_close(&shim->input.end);
		close_stream(shim, WIRE_STDIN);
		return;
	}
	(void)credit_spend(&shim->input.credit, (size_t)got);
	send_agent(shim, &head, bytes, (size_t)got);
}

static void write_output(struct shim *shim, size_t output)
{
	struct sink *sink = &shim->outputs[output];
	ssize_t put;

	if (sink->end.fd < 0)
		return;
	put = sink_flush(sink);
	if (put > 0)
		shim->progress_ns = clock_ns(CLOCK_MONOTONIC);
	if (put < 0) {
		(void)credit_return(&sink->credit, sink->backlog.size);
		backlog_clear(&sink->backlog);
		refuse_output(shim, output);
	}
	if (put < 0 || (sink->ended && !sink->backlog.size))
		endpoint_close(&sink->end);
}

static bool wants_input(const struct shim *shim)
{
	return shim->fed && !shim->exited && shim->input.end.fd >= 0 && credit_room(&shim->input.credit) > 0 && shim->agent.ordered.size <= AHEAD_MAX;
}

static size_t fill_polls(struct shim *shim, struct pollfd *polls)
{
	polls[POLL_SIGNALS] = (struct pollfd){.fd = shim->signals, .events = POLLIN};
	polls[POLL_CONTROL] = (struct pollfd){.fd = shim->control_rests ? -1 : shim->control, .events = POLLIN};
	polls[POLL_AGENT] = (struct pollfd){.fd = shim->agent.fd, .events = POLLIN};
	if (conn_pending(&shim->agent))
		polls[POLL_AGENT].events |= POLLOUT;
	polls[POLL_QMP] = (struct pollfd){.fd = shim->committed ? shim->monitor.fd : -1, .events = POLLIN};
	polls[POLL_DATE] = (struct pollfd){.fd = shim->date, .events = POLLIN};
	polls[POLL_WORDS] = (struct pollfd){.fd = shim->words_rest ? -1 : shim->words, .events = POLLIN};
	polls[POLL_INPUT] = (struct pollfd){.fd = wants_input(shim) ? shim->input.end.fd : -1, .events = POLLIN};
	for (size_t i = 0; i < 2; i++) {
		bool waiting = shim->outputs[i].backlog.size > 0;

		polls[POLL_OUTPUTS + i] = (struct pollfd){.fd = waiting ? shim->outputs[i].end.fd : -1, .events = POLLOUT};
	}
	for (size_t i = 0; i < shim->client_count; i++) {
		const struct client *client = &shim->clients[i];

		polls[POLL_CLIENTS + i] = (struct pollfd){.fd = client->id ? client->conn.fd : -1, .events = POLLIN};
		if (client->id && conn_pending(&client->conn))
			polls[POLL_CLIENTS + i].events |= POLLOUT;
	}
	return POLL_CLIENTS + shim->client_count;
}

/* EPIPE: nobody reads there. What was sent from there is read all the same, to its end of file. */
static void flush(struct conn *conn)
{
	if (conn->fd >= 0 && conn_flush(conn) == -EPIPE)
		conn_drop_output(conn);
}

static void flush_all(struct shim *shim)
{
	write_output(shim, 0);
	write_output(shim, 1);
	flush(&shim->agent);
	if (acknowledge(shim))
		flush(&shim->agent);
	for (size_t i = 0; i < shim->client_count; i++)
		if (shim->clients[i].id)
			flush(&shim->clients[i].conn);
}

static int timeout_ms(const struct shim *shim)
{
	if (wants_input(shim) && shim->input.eager)
		return 0;
	if (shim->words_rest)
		return WORDS_REST_MS;
	if (shim->control_rests)
		return REST_MS;
	if (shim->loss_ns && !shim->exited)
		return LOSS_MS * shim->options->patience;
	return patience_ms(shim);
}

static void serve_clients(struct shim *shim, const struct pollfd *polls, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (polls[i].fd >= 0 && polls[i].revents && shim->clients[i].id)
			read_client(shim, &shim->clients[i]);
}

static void turn(struct shim *shim)
{
	struct pollfd polls[POLLS_MAX];
	size_t count = fill_polls(shim, polls), clients = shim->client_count;

	(void)poll(polls, count, timeout_ms(shim));
	if (polls[POLL_AGENT].fd >= 0 && polls[POLL_AGENT].revents)
		serve_agent(shim);
	if (polls[POLL_SIGNALS].revents)
		read_signals(shim);
	serve_clients(shim, polls + POLL_CLIENTS, clients);
	shim->control_rests = false;
	if (polls[POLL_CONTROL].revents)
		accept_clients(shim);
	if (polls[POLL_QMP].fd >= 0 && polls[POLL_QMP].revents)
		pause_serve(shim);
	if (polls[POLL_DATE].revents)
		date_serve(shim);
	shim->words_rest = polls[POLL_WORDS].fd >= 0 && polls[POLL_WORDS].revents;
	if (shim->words_rest)
		log_take(shim->options->log, &shim->words, LOG_PIECES);
	if (wants_input(shim) && (polls[POLL_INPUT].revents || shim->input.eager))
		read_input(shim);
	if (shim->loss_ns && clock_ns(CLOCK_MONOTONIC) - shim->loss_ns >= LOSS_MS * NS_PER_MS * shim->options->patience)
		end_early(shim, ECHILD, 255, shim->loss.reason, shim->loss.status, shim->loss.detail);
	flush_all(shim);
	end_when_flushed(shim);
}

/* Everything of the host that is needed is a descriptor by now; what is opened by name comes before the pivot. */
static int set_up(struct shim *shim, const struct options *options)
{
	int error;

	endpoint_open(&shim->input.end, STDIN_FILENO, false);
	endpoint_open(&shim->outputs[0].end, STDOUT_FILENO, true);
	endpoint_open(&shim->outputs[1].end, STDERR_FILENO, true);
	shim->input.eager = true;
	shim->creator = add_client(shim, options->creator);
	if (!shim->creator)
		return -ENOMEM;
	if (fcntl(shim->control, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	error = conn_open(&shim->agent, options->agent, WIRE_PAYLOAD_MAX);
	if (!error)
		error = root_enter(options);
	close(options->rootfs);
	return error;
}

void serve(const struct options *options, pid_t qemu, int signals, int words)
{
	struct shim shim = {.options = options,
			    .qemu = qemu,
			    .signals = signals,
			    .control = options->control,
			    .words = words,
			    .agent.fd = -1,
			    .monitor.fd = options->qmp,
			    .oom_kills = oom_kills(options->oom_events)};
	int error;

	/* Without this glibc raises the bound with the first large plan, and keeps the memory for the container's life. */
	(void)mallopt(M_MMAP_THRESHOLD, 64 * 1024);
	date_watch(&shim);
	error = set_up(&shim, options);
	if (error) {
		char detail[96];

		(void)snprintf(detail, sizeof(detail), "enter the rootfs: %s", strerror(-error));
		end_early(&shim, -error, 255, "internal", 0, detail);
	}
	for (;;)
		turn(&shim);
}
