#include "child.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pages.h"
#include "plan.h"

enum {
	ABOVE = 16, /* out of the way of the descriptors' final numbers */
	EXIT_NOT_FOUND = 127,
	EXIT_NOT_EXECUTABLE = 126,
};
_Static_assert((int)CHILD_DESCRIPTORS_OF_SPARE <= (int)ABOVE, "room for the final numbers");

static void reset_signals(void)
{
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Puts the descriptors in their places and closes all others, the agent's channel first among them. */
static int arrange_descriptors(const int *given, int count)
{
	int above[CHILD_DESCRIPTORS_OF_SPARE];

	for (int fd = 0; fd < count; fd++)
		if ((above[fd] = fcntl(given[fd], F_DUPFD_CLOEXEC, ABOVE)) < 0)
			return -errno;
	for (int fd = 0; fd < count; fd++)
		if (dup3(above[fd], fd, fd < WIRE_STREAMS ? 0 : O_CLOEXEC) < 0)
			return -errno;
	return check(close_range((unsigned)count, ~0U, 0));
}

/* No system call but the exit: a filter may deny any, and where it denies that as well, the C library's _exit ends in a fault, which is an end too. */
static void fail(const struct plan_context *context, struct plan_failure failure) __attribute__((noreturn));
static void fail(const struct plan_context *context, struct plan_failure failure)
{
	struct status_record *words = context->words;

	words->error = failure.error;
	words->index = failure.index;
	memcpy(words->detail, context->detail, sizeof(words->detail));
	words->kind = context->no_program ? STATUS_NO_PROGRAM : STATUS_FAILED;
	_exit(failure.error == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

/* All that comes before any plan. */
static struct plan_context begin(const int *given, int count, struct status_record *words)
{
	struct plan_context context;
	int error = arrange_descriptors(given, count);

	reset_signals();
	umask(0);
	setsid();
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* until the exec this is a copy of the agent's memory */
	plan_context_init(&context);
	context.words = words;
	context.status = CHILD_STATUS;
	context.start = CHILD_START;
	if (error)
		fail(&context, (struct plan_failure){.error = -error});
	return context;
}

void child_run(const int given[CHILD_DESCRIPTORS], struct status_record *words, const uint8_t *plan)
{
	struct plan_context context = begin(given, CHILD_DESCRIPTORS, words);

	fail(&context, plan_run(&context, plan));
}

/* Blocks until the agent has written the plan. Its end, or that of its interest, is the end of this process. */
static struct child_go await_go(void)
{
	struct child_go go;
	ssize_t got;

	do
		got = read(CHILD_GO, &go, sizeof(go));
	while (got < 0 && errno == EINTR);
	if (got != (ssize_t)sizeof(go))
		_exit(EXIT_FAILURE);
	return go;
}

void child_wait(const int given[CHILD_DESCRIPTORS_OF_SPARE], struct status_record *words)
{
	struct status_record spare = {.kind = STATUS_SPARE};
	struct plan_context context = begin(given, CHILD_DESCRIPTORS_OF_SPARE, words);

	/* As nearly every plan will ask; what goes wrong here goes wrong there again, and is reported then. */
	(void)link_up("lo");
	pages_own();
	if (write(context.status, &spare, sizeof(spare)) != (ssize_t)sizeof(spare))
		_exit(EXIT_FAILURE); /* the agent sees a death */
	struct child_go go = await_go();
	const uint8_t *plan = mmap(NULL, go.size, PROT_READ, MAP_PRIVATE, CHILD_PLAN, 0);
	int error = plan == MAP_FAILED ? -errno : check(unshare((int)go.namespaces));
	if (!error)
		error = check(close_range(CHILD_GO, CHILD_PLAN, 0));
	fail(&context, error ? (struct plan_failure){.error = -error} : plan_run(&context, plan));
}
