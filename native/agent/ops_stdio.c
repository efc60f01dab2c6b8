/* What the caller's stdin, stdout and stderr are is kept, as far as two kernels can: /dev/null, and one file for both outputs. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cleanup.h"
#include "path.h"
#include "plan.h"

enum { NULL_MAJOR = 1, NULL_MINOR = 3 };

/* The container's own /dev/null, as runc opens it anew; -1: what is there is something else. It is looked at before it is opened. */
static int open_null(const struct plan_context *context)
{
	cleanup_close int found = path_open(context, "/dev/null", O_PATH);
	struct stat status;

	if (found < 0 || fstat(found, &status) < 0 || !S_ISCHR(status.st_mode) || status.st_rdev != makedev(NULL_MAJOR, NULL_MINOR))
		return -1;
	int null = path_open(context, "/dev/null", O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (null >= 0 && fcntl(null, F_SETFL, 0) < 0)
		close_fd(&null);
	return null < 0 ? -1 : null;
}

/* Where there is no /dev/null the pipe stays: what comes out of it the host throws away. */
static int replace_nulls(const struct plan_context *context, uint64_t streams)
{
	cleanup_close int null = streams ? open_null(context) : -1;

	for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
		if (streams & 1U << fd && dup3(null, fd, 0) < 0)
			return -errno;
	return 0;
}

/* The agent sees the end of each pipe that has no writer any more. */
int op_streams(struct plan_context *context, struct plan_arguments *arguments)
{
	uint64_t nulls = next_number(arguments);
	bool joined = next_number(arguments) != 0;
	int error = replace_nulls(context, nulls);

	if (!error && joined) {
		error = check(dup3(STDOUT_FILENO, STDERR_FILENO, 0));
		context->words->joined = true;
	}
	return error;
}

int op_stdio_owner(struct plan_context *context, struct plan_arguments *arguments)
{
	uid_t uid = (uid_t)next_number(arguments);
	gid_t gid = (gid_t)next_number(arguments);

	(void)context;
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		struct stat status;

		if (fstat(fd, &status) < 0 || (!S_ISCHR(status.st_mode) && fchown(fd, uid, gid) < 0))
			return -errno;
	}
	return 0;
}
