/* The machine is stopped by QEMU, not by the freezer: the shim lives in the container's cgroup, and frozen it could not thaw it
 * (docs/adr/0003-process-model.md). */
#include "pause.h"

#include <errno.h>
#include <string.h>

#include "date.h"
#include "end.h"
#include "monitor.h"
#include "peers.h"
#include "record.h"

enum { READ_SIZE = 4096 };

void pause_request(struct shim *shim, struct client *client, const struct message *message)
{
	int error = 0;

	if (!shim->committed) /* until then the monitor is the creator's */
		error = -EPERM;
	else if (shim->exited)
		error = -ECHILD;
	else
		error = monitor_send(&shim->monitor, client->id, &message->head);
	if (error)
		reply(shim, client, &message->head, -error, "QEMU takes no command");
}

/* One that stands still without the mark would be running for all the world, and nobody could resume it. The answer is nobody's. */
static void go_on(struct shim *shim, const struct wire_header *pause)
{
	struct wire_header resume = *pause;

	resume.type = WIRE_RESUME;
	(void)monitor_send(&shim->monitor, 0, &resume);
}

/* The mark comes first: who has the RESULT may ask for the status at once. */
static int note_answer(struct shim *shim, const struct answer *answer)
{
	bool paused = answer->command.head.type == WIRE_PAUSE;
	int error;

	if (answer->refused)
		return EIO;
	error = record_paused(shim->options->state, paused);
	if (error && paused)
		go_on(shim, &answer->command.head);
	else
		shim->paused = paused;
	if (!paused) /* it slept, and did not notice */
		date_tell(shim);
	return -error;
}

static void finish_command(struct shim *shim, const struct command *command, int error, const char *detail)
{
	struct client *client = find_client(shim, command->client);

	if (client)
		reply(shim, client, &command->head, error, detail);
}

void pause_serve(struct shim *shim)
{
	char bytes[READ_SIZE];
	size_t size = monitor_read(&shim->monitor, bytes, sizeof(bytes)), taken = 0;
	struct answer answer;
	struct command command;

	while (taken < size) {
		taken += monitor_take(&shim->monitor, bytes + taken, size - taken, &answer);
		if (answer.command.head.tag) {
			int error = note_answer(shim, &answer);

			finish_command(shim, &answer.command, error, answer.refused ? "QEMU refused" : error ? "mark it" : NULL);
		}
	}
	if (shim->monitor.stopped)
		end_early(shim, ECHILD, 255, "qemu", 0, "qemu stopped its machine, which nobody had asked for: KVM could not go on with it");
	while (shim->monitor.fd < 0 && monitor_give_up(&shim->monitor, &command))
		finish_command(shim, &command, ECHILD, "QEMU's monitor closed");
}
