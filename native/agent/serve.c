/* The loop: it takes messages, children and pipes as they come, and does not fail. */
#include "serve.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "figures.h"
#include "machine.h"
#include "process.h"
#include "spare.h"
#include "spawn.h"

enum {
	PROCESSES_MAX = 64,
	POLL_CHANNEL = 0,
	POLL_SIGNALS = 1,
	POLL_FIRST = 2, /* then PROCESS_POLLS for each process: its streams, its status pipe */
	POLL_STATUS = WIRE_STREAMS,
	REST_MS = 20, /* how often to look whether a port that hung up has a new peer, or the kernel memory */
};
_Static_assert(PROCESS_POLLS == WIRE_STREAMS + 1, "polls of a process");

struct agent {
	struct conn conn;
	bool persistent;
	bool deaf;    /* the peer broke the protocol: its bytes cannot be told apart any more, so they are dropped */
	bool resting; /* the channel is left alone for a while: nobody is at its other end now, or memory is short */
	bool over;
	int signals;
	struct process *processes[PROCESSES_MAX];
};

static struct agent agent;
static struct pollfd polls[POLL_FIRST + PROCESSES_MAX * PROCESS_POLLS];

static struct process **find_process(const struct wire_header *head)
{
	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		struct process *process = agent.processes[i];
		if (process && process->container == head->container && process->number == head->process)
			return &agent.processes[i];
	}
	return NULL;
}

static struct process **free_place(void)
{
	for (size_t i = 0; i < PROCESSES_MAX; i++)
		if (!agent.processes[i])
			return &agent.processes[i];
	return NULL;
}

/* The VM's own plan: done here and now. */
static void run_machine_plan(const struct message *message)
{
	struct plan_context context;

	plan_context_init(&context);
	struct plan_failure failure = plan_run(&context, message->payload);
	send_result(&agent.conn, &message->head, failure.error, failure.index, context.detail);
	plan_context_release(&context);
}

static void run_container_plan(const struct message *message)
{
	struct process **place = free_place();
	int error = !place ? EAGAIN : find_process(&message->head) ? EEXIST : 0;

	if (message->head.process != 0)
		error = EOPNOTSUPP;
	if (!error)
		*place = process_spawn(message->head.container, message->payload, message->size, &error);
	if (error)
		send_result(&agent.conn, &message->head, error, 0, "start the container's first process");
	else
		(*place)->plan_tag = message->head.tag;
}

static void take_plan(const struct message *message)
{
	bool machine = message->head.container == 0;
	struct plan_failure malformed = plan_check(message->payload, message->size, machine ? PLAN_OF_MACHINE : PLAN_OF_CONTAINER);

	if (malformed.error)
		send_result(&agent.conn, &message->head, malformed.error, malformed.index, "malformed plan");
	else if (machine)
		run_machine_plan(message);
	else
		run_container_plan(message);
}

static void take_signal(const struct message *message)
{
	struct process **process = find_process(&message->head);
	struct wire_signal signal;
	int error = -EPROTO;

	if (message->size == sizeof(signal)) {
		memcpy(&signal, message->payload, sizeof(signal));
		error = process ? process_signal(*process, &agent.conn, &signal) : -ESRCH;
	}
	send_result(&agent.conn, &message->head, -error, 0, NULL);
}

static void take_start(const struct message *message)
{
	struct process **process = find_process(&message->head);

	if (message->size)
		send_result(&agent.conn, &message->head, EPROTO, 0, NULL);
	else if (process)
		process_start(*process, &agent.conn, &message->head);
	else
		send_result(&agent.conn, &message->head, ESRCH, 0, NULL);
}

static void take_machine_request(const struct message *message)
{
	const char *what = "only for the machine";
	int error = -EPROTO;

	if (message->head.container == 0 && message->head.type == WIRE_IDENTITY)
		error = machine_identity((uint8_t *)(uintptr_t)message->payload, message->size, &what);
	else if (message->head.container == 0 && message->size == 0)
		error = machine_settle(&what);
	send_result(&agent.conn, &message->head, -error, 0, error ? what : NULL);
	/* A snapshot follows a SETTLE: whoever speaks next speaks to a clone, and begins with HELLO. */
	if (message->head.type == WIRE_SETTLE && !error)
		agent.conn.greeted = false;
}

/* `index` of the answer: 1 as long as the kernel still measures its clock. */
static void tell_clock(const struct message *message)
{
	struct wire_header head = {.type = WIRE_RESULT, .tag = message->head.tag};
	struct wire_result result = {0};
	struct wire_clock told;
	uint8_t answer[sizeof(result) + sizeof(told)];

	if (message->head.container != 0 || message->size != 0) {
		send_result(&agent.conn, &message->head, EPROTO, 0, NULL);
		return;
	}
	result.index = machine_tell_clock(&told);
	memcpy(answer, &result, sizeof(result));
	memcpy(answer + sizeof(result), &told, sizeof(told));
	send_message(&agent.conn, &head, answer, sizeof(answer));
}

/* The machine was paused, or the host's date was set; without an answer, since the time would be old by then. */
static void set_clock(const struct message *message)
{
	struct wire_date date;

	if (message->head.container != 0 || message->size != sizeof(date)) {
		send_violation(&agent.conn, "bad clock");
		return;
	}
	memcpy(&date, message->payload, sizeof(date));
	machine_date(&date);
}

static void send_figures(const struct message *message, const uint8_t *answer, ssize_t size)
{
	struct wire_header head = {.type = WIRE_RESULT, .container = message->head.container, .tag = message->head.tag};

	if (size < 0)
		send_result(&agent.conn, &message->head, (int)-size, 0, NULL);
	else if (message->head.tag)
		send_message(&agent.conn, &head, answer, (size_t)size);
}

static void take_read(const struct message *message)
{
	uint8_t answer[WIRE_PAYLOAD_MAX];
	struct process **process = find_process(&message->head);

	send_figures(message, answer, process ? figures_read((*process)->cgroup, message->payload, message->size, answer) : -ESRCH);
}

static void take_processes(const struct message *message)
{
	uint8_t answer[WIRE_PAYLOAD_MAX];
	cleanup_close int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t size = -ESRCH;

	if (find_process(&message->head))
		size = figures_processes(proc, message->head.container, message->payload, message->size, answer);
	send_figures(message, answer, size);
}

static void take_stream(const struct message *message)
{
	struct process **process = find_process(&message->head);

	if (process)
		stream_receive(*process, &agent.conn, message); /* else it crossed our EXITED */
}

static void take_message(const struct message *message)
{
	switch (message->head.type) {
	case WIRE_HELLO:
		while (conn_send_hello(&agent.conn, WIRE_ROLE_AGENT) == -ENOMEM)
			conn_flush(&agent.conn);
		break;
	case WIRE_IDENTITY:
	case WIRE_SETTLE:
		take_machine_request(message);
		break;
	case WIRE_PLAN:
		take_plan(message);
		break;
	case WIRE_START:
		take_start(message);
		break;
	case WIRE_SIGNAL:
		take_signal(message);
		break;
	case WIRE_READ:
		take_read(message);
		break;
	case WIRE_PROCESSES:
		take_processes(message);
		break;
	case WIRE_CLOCK:
		if (message->head.tag)
			tell_clock(message);
		else
			set_clock(message);
		break;
	case WIRE_DATA:
	case WIRE_CREDIT:
	case WIRE_CLOSE:
		take_stream(message);
		break;
	default:
		send_result(&agent.conn, &message->head, message->head.type < 0x80 ? EPROTO : ENOSYS, 0, NULL);
	}
}

/* The peer's bytes make no sense, or one of its messages found no memory: the conversation cannot go on. */
static void end_conversation(int error)
{
	struct wire_header request = agent.conn.joining_head;

	if (error == -ENOMEM)
		send_result(&agent.conn, &request, ENOMEM, 0, "receive a message");
	else
		send_violation(&agent.conn, error == -EPROTONOSUPPORT ? "another protocol version" : "protocol violation");
	agent.deaf = true;
}

static void take_messages(void)
{
	struct message message;
	int more = 0;

	while (!agent.deaf && (more = conn_next(&agent.conn, &message)) > 0)
		take_message(&message);
	if (more < 0)
		end_conversation(more);
}

/* Forgets the conversation, keeps the port: the next peer begins with HELLO. */
static void hang_up(void)
{
	int fd = take_fd(&agent.conn.fd);

	agent.over = !agent.persistent;
	agent.resting = true;
	agent.deaf = false;
	conn_close(&agent.conn);
	conn_open(&agent.conn, fd, WIRE_MESSAGE_MAX);
}

static void drop_input(void)
{
	uint8_t bytes[4096];
	ssize_t got = read(agent.conn.fd, bytes, sizeof(bytes));

	if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
		hang_up();
}

static void serve_channel(short events)
{
	if (!(events & POLLIN)) {
		if (events & (POLLHUP | POLLERR))
			hang_up();
		return;
	}
	if (agent.deaf) {
		drop_input();
		return;
	}
	int result = conn_read(&agent.conn);
	if (result == CONN_READ)
		take_messages();
	else if (result == -ENOMEM)
		agent.resting = true;
	else if (result != CONN_AGAIN)
		hang_up();
}

/* All children, those that orphans became as well. */
static void reap_children(void)
{
	struct signalfd_siginfo information;
	int exit_status;
	pid_t pid;

	while (read(agent.signals, &information, sizeof(information)) > 0)
		;
	while ((pid = waitpid(-1, &exit_status, WNOHANG)) > 0) {
		spare_reaped(pid);
		for (size_t i = 0; i < PROCESSES_MAX; i++)
			if (agent.processes[i] && !agent.processes[i]->reaped && agent.processes[i]->pid == pid)
				process_reap(agent.processes[i], exit_status);
	}
}

static void flush(void)
{
	int error = agent.over ? 0 : conn_flush(&agent.conn);

	if (error == -ENOMEM)
		agent.resting = true;
	else if (error)
		hang_up();
}

static void serve_processes(void)
{
	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		struct process *process = agent.processes[i];
		struct pollfd *own = &polls[POLL_FIRST + i * PROCESS_POLLS];
		if (!process)
			continue;
		if (own[POLL_STATUS].revents)
			process_read_status(process, &agent.conn);
		stream_serve(process, &agent.conn, own);
		if (!process_advance(process, &agent.conn)) {
			flush(); /* its end is told before its cgroups are removed, of which it may have made thousands */
			agent.processes[i] = NULL;
			process_free(process);
		}
	}
}

/* Says what to wait for; returns how many entries count. */
static nfds_t prepare_polls(void)
{
	nfds_t count = POLL_FIRST;
	short out = conn_pending(&agent.conn) ? POLLOUT : 0;

	polls[POLL_CHANNEL] = (struct pollfd){.fd = agent.resting ? -1 : agent.conn.fd, .events = (short)(POLLIN | out)};
	polls[POLL_SIGNALS] = (struct pollfd){.fd = agent.signals, .events = POLLIN};
	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		const struct process *process = agent.processes[i];
		struct pollfd *own = &polls[POLL_FIRST + i * PROCESS_POLLS];
		for (size_t j = 0; j < PROCESS_POLLS; j++)
			own[j] = (struct pollfd){.fd = -1};
		if (!process)
			continue;
		stream_polls(process, &agent.conn, own);
		own[POLL_STATUS] = (struct pollfd){.fd = process->status, .events = POLLIN};
		count = (nfds_t)(POLL_FIRST + (i + 1) * PROCESS_POLLS);
	}
	return count;
}

static void serve_once(void)
{
	nfds_t count = prepare_polls();

	if (poll(polls, count, agent.resting ? REST_MS : -1) < 0)
		return; /* EINTR, ENOMEM: try again */
	agent.resting = false;
	if (polls[POLL_SIGNALS].revents)
		reap_children();
	if (polls[POLL_CHANNEL].revents)
		serve_channel(polls[POLL_CHANNEL].revents);
	serve_processes();
	flush();
}

static int open_signals(void)
{
	sigset_t all, children;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	signal(SIGPIPE, SIG_IGN);
	int fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int serve(int fd, bool persistent)
{
	int error = conn_open(&agent.conn, fd, WIRE_MESSAGE_MAX);

	if (error)
		return error;
	agent.persistent = persistent;
	agent.signals = open_signals();
	if (agent.signals < 0)
		return agent.signals;
	while (!agent.over)
		serve_once();
	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		if (!agent.processes[i])
			continue;
		if (!agent.processes[i]->reaped)
			kill(agent.processes[i]->pid, SIGKILL);
		process_free(agent.processes[i]);
	}
	return 0;
}
