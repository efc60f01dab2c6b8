/* QEMU, and the programs beside it that it cannot do without: children of the shim, each in a mount namespace of its own. */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "assembly.h"
#include "capabilities.h"
#include "cleanup.h"

static int quiet_stdio(int words)
{
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup2(null, 0) < 0 || dup2(words, 1) < 0 || dup2(words, 2) < 0)
		return -errno;
	return 0;
}

/* Everything but stdio and what the program was promised is closed by exec. */
static int inherit(const int *promised, size_t count)
{
	if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	for (size_t i = 0; i < count; i++)
		if (fcntl(promised[i], F_SETFD, 0) < 0)
			return -errno;
	return 0;
}

/* In a child: says what could not be done. */
static void give_up(const char *what, const char *of, int error) __attribute__((noreturn));
static void give_up(const char *what, const char *of, int error)
{
	dprintf(2, "%s %s: %s\n", what, of, strerror(-error));
	_exit(127);
}

/* Runs the program, unless what came before failed; says why it could not. */
static void become(char **argv, int error) __attribute__((noreturn));
static void become(char **argv, int error)
{
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigset_t none;

	if (!error) {
		sigaction(SIGPIPE, &standard, NULL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execv(argv[0], argv);
		error = -errno;
	}
	give_up("start", argv[0], error);
}

static const char assembling[] = "mount the volumes and the rootfs for";

static void run_qemu(const struct options *options, int words) __attribute__((noreturn));
static void run_qemu(const struct options *options, int words)
{
	bool volumes = options->volumes_fd >= 0;
	int error = quiet_stdio(words);

	if (!error && (error = exports_assemble(options)))
		give_up(assembling, options->qemu[0], error);
	if (!error)
		error = inherit(options->keep, options->keep_count);
	if (!error && volumes && fcntl(options->volumes_fd, F_SETFD, 0) < 0)
		error = -errno;
	if (!error)
		error = capabilities_limit(false);
	/* QEMU asks for huge pages for tables and buffers of which a clone uses a part. Inherited over exec; without it
	 * memory is lost, nothing else. */
	if (options->small_pages)
		(void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	become(options->qemu, error);
}

static void run_helper(const struct options *options, const struct helper *helper, int words) __attribute__((noreturn));
static void run_helper(const struct options *options, const struct helper *helper, int words)
{
	cleanup_close int directory = -1;
	int error = quiet_stdio(words);

	if (!error && helper->directory >= 0)
		error = directory_show(options, helper->directory, helper->read_only);
	else if (!error)
		error = (directory = volumes_assemble(options)) < 0 ? directory : 0;
	if (error)
		give_up(assembling, helper->argv[0], error);
	if (!error)
		error = inherit(&helper->keep, 1);
	if (!error)
		error = capabilities_limit(true);
	become(helper->argv, error);
}

pid_t helper_spawn(const struct options *options, const struct helper *helper, int words)
{
	pid_t pid = fork();

	if (pid == 0)
		run_helper(options, helper, words);
	return pid < 0 ? -errno : pid;
}

pid_t vm_spawn(const struct options *options, int words)
{
	pid_t pid = fork();

	if (pid == 0)
		run_qemu(options, words);
	return pid < 0 ? -errno : pid;
}
