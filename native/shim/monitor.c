/* JSON is not parsed here. A guest that has taken QEMU over speaks at the other end, and the worst it can do is to be believed that its machine
 * stands still or runs: so it is enough to find the number of our command, and whether the answer is an error. */
#include "monitor.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING "{\"execute\": \"qmp_capabilities\"}\n"

/* Not a prefix of it: QEMU never leaves so much unread. */
static int send_all(struct monitor *monitor, const char *text)
{
	size_t size = strlen(text);

	if (monitor->fd < 0 || send(monitor->fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
		return -EPIPE;
	return 0;
}

static struct command *free_place(struct monitor *monitor)
{
	for (size_t i = 0; i < MONITOR_COMMANDS_MAX; i++)
		if (!monitor->commands[i].head.tag)
			return &monitor->commands[i];
	return NULL;
}

int monitor_send(struct monitor *monitor, uint32_t client, const struct wire_header *head)
{
	struct command *command = free_place(monitor);
	char text[96];
	int error = 0;

	if (!command)
		return -ENOBUFS;
	/* Whoever booted the machine without a template has said nothing to QEMU yet. Said twice it is refused, and that is all. */
	if (!monitor->greeted)
		error = send_all(monitor, GREETING);
	if (error)
		return error;
	monitor->greeted = true;
	monitor->last_id++;
	(void)snprintf(text, sizeof(text), "{\"execute\": \"%s\", \"id\": %u}\n", head->type == WIRE_PAUSE ? "stop" : "cont", monitor->last_id);
	error = send_all(monitor, text);
	if (!error)
		*command = (struct command){.client = client, .head = *head, .id = monitor->last_id};
	return error;
}

size_t monitor_read(struct monitor *monitor, char *bytes, size_t size)
{
	ssize_t got = recv(monitor->fd, bytes, size, MSG_DONTWAIT);

	if (got > 0)
		return (size_t)got;
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	close(monitor->fd);
	monitor->fd = -1;
	return 0;
}

static bool names(const char *line, uint32_t id)
{
	char text[24];
	int length = snprintf(text, sizeof(text), "\"id\": %u", id);
	const char *found = strstr(line, text);

	return found && (found[length] == ',' || found[length] == '}');
}

static bool has(const char *line, const char *key)
{
	return strstr(line, key) != NULL;
}

static bool is_stopping(const struct monitor *monitor)
{
	for (size_t i = 0; i < MONITOR_COMMANDS_MAX; i++)
		if (monitor->commands[i].head.tag && monitor->commands[i].head.type == WIRE_PAUSE)
			return true;
	return false;
}

static void take_line(struct monitor *monitor, struct answer *answer)
{
	const char *line = monitor->line;
	bool refused;

	monitor->line[monitor->length] = '\0';
	monitor->length = 0;
	if (has(line, "\"event\": \"STOP\"") && !is_stopping(monitor))
		monitor->stopped = true;
	refused = has(line, "\"error\": ");
	if (!refused && !has(line, "\"return\": "))
		return;
	for (size_t i = 0; i < MONITOR_COMMANDS_MAX; i++) {
		struct command *command = &monitor->commands[i];

		if (!command->head.tag || !names(line, command->id))
			continue;
		*answer = (struct answer){.command = *command, .refused = refused};
		*command = (struct command){0};
		return;
	}
}

size_t monitor_take(struct monitor *monitor, const char *bytes, size_t size, struct answer *answer)
{
	*answer = (struct answer){0};
	for (size_t i = 0; i < size; i++) {
		if (bytes[i] == '\n')
			take_line(monitor, answer);
		else if (bytes[i] != '\0' && monitor->length < MONITOR_LINE_MAX - 1)
			monitor->line[monitor->length++] = bytes[i];
		if (answer->command.head.tag)
			return i + 1;
	}
	return size;
}

bool monitor_give_up(struct monitor *monitor, struct command *command)
{
	for (size_t i = 0; i < MONITOR_COMMANDS_MAX; i++) {
		if (!monitor->commands[i].head.tag)
			continue;
		*command = monitor->commands[i];
		monitor->commands[i] = (struct command){0};
		return true;
	}
	return false;
}
