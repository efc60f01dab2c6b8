/* `shim launch OPTIONS -- QEMU ARGS`: the launcher, which joins the cgroups and clones the shim (docs/adr/0003-process-model.md). */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "clock.h"
#include "log.h"
#include "memory.h"
#include "namespaces.h"
#include "options.h"
#include "serve.h"
#include "vm.h"
#include "wire.h"

/* One frame in one send: the shim writes to the same socket. */
static void tell_creator(int creator, uint8_t type, const void *payload, size_t size)
{
	uint8_t frame[WIRE_HEADER_SIZE + 256];
	struct wire_header head = {.type = type};

	if (size > sizeof(frame) - sizeof(head))
		size = sizeof(frame) - sizeof(head);
	head.size = (uint32_t)size;
	memcpy(frame, &head, sizeof(head));
	memcpy(frame + sizeof(head), payload, size);
	(void)send(creator, frame, sizeof(head) + size, MSG_NOSIGNAL);
}

static int fail(int creator, int error, const char *what)
{
	struct wire_result result = {.error = error};
	char payload[200];
	int length;

	memcpy(payload, &result, sizeof(result));
	length = snprintf(payload + sizeof(result), sizeof(payload) - sizeof(result), "launch: %s: %s", what, strerror(error));
	if (length < 0)
		length = 0;
	if ((size_t)length > sizeof(payload) - sizeof(result) - 1)
		length = (int)(sizeof(payload) - sizeof(result) - 1);
	tell_creator(creator, WIRE_RESULT, payload, sizeof(result) + (size_t)length);
	return 1;
}

/* A standard descriptor that the caller closed must not become another file's. */
static void fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

/* For QEMU and its helpers, who inherit it: they hold a descriptor for each file of the guest's that is open, virtiofsd for each inode it knows. A
 * login shell's 1024 is no limit of the container's, which has its own in its guest. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int join_cgroups(const struct options *options)
{
	for (size_t i = 0; i < options->cgroup_count; i++) {
		if (write(options->cgroups[i], "0", 1) != 1)
			return -errno;
		close(options->cgroups[i]);
	}
	return 0;
}

/* The shim is the *caller's* child (CLONE_PARENT): whoever waits for it need not know of this process. */
static pid_t clone_shim(const struct options *options)
{
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_PARENT};

	if (options->cgroup2 >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (unsigned int)options->cgroup2;
	}
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

/* A v2 cgroup that somebody has removed is ENOENT here, whose words callers take for a missing program of the container's. */
static int fail_clone(const struct options *options, int error)
{
	if (options->cgroup2 < 0)
		return fail(options->creator, error, "clone");
	return fail(options->creator, error == ENOENT ? ENODEV : error, "clone into the cgroup");
}

static void set_oom_score(const char *score)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, score, strlen(score)) < 0) {
		/* Lowering it takes CAP_SYS_RESOURCE, which the caller may lack: a preference, not a promise. */
	}
	close(fd);
}

/* Before the shim is there: a signal that finds the first process of a PID namespace without a handler, and not blocked,
 * is lost (pid_namespaces(7)), and the creator may send one as soon as it knows the pid. */
static void block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
}

static int open_signals(void)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	sigset_t all;

	sigfillset(&all);
	/* Our own writes to a pipe without reader must not look like somebody's signal. */
	sigaction(SIGPIPE, &ignore, NULL);
	return signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* A creator that is gone cannot know that we are here, and its cgroups may be given back already: nothing may be started in them. */
static bool creator_is_gone(int creator)
{
	struct pollfd poller = {.fd = creator, .events = POLLRDHUP};

	return poll(&poller, 1, 0) > 0 && (poller.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* Before QEMU, which connects to them. */
static void start_helpers(const struct options *options, int words)
{
	for (size_t i = 0; i < options->helper_count; i++) {
		struct helper *helper = &options->helpers[i];

		helper->pid = helper_spawn(options, helper, words);
		if (helper->pid < 0)
			_exit(fail(options->creator, -helper->pid, helper->name));
	}
}

static void give_memory(const struct options *options)
{
	int error = options->copy_from < 0 ? 0 : memory_copy(options->copy_from, options->copy_to);

	if (error)
		_exit(fail(options->creator, -error, "copy the template's memory"));
}

static void close_passed_on(const struct options *options)
{
	const int single[] = {options->cgroup2, options->copy_from, options->copy_to};

	for (size_t i = 0; i < options->keep_count; i++)
		close(options->keep[i]);
	for (size_t i = 0; i < options->volume_count; i++)
		close(options->volumes[i].fd);
	for (size_t i = 0; i < options->helper_count; i++) {
		close(options->helpers[i].keep);
		if (options->helpers[i].directory >= 0)
			close(options->helpers[i].directory);
	}
	for (size_t i = 0; i < sizeof(single) / sizeof(*single); i++)
		if (single[i] >= 0)
			close(single[i]);
}

static void become_shim(const struct options *options) __attribute__((noreturn));
static void become_shim(const struct options *options)
{
	int signals, error, words[2];
	pid_t qemu;

	if (creator_is_gone(options->creator))
		_exit(255);
	attach_ahead(options->attach);
	(void)setsid();
	signals = open_signals();
	if (signals < 0)
		_exit(fail(options->creator, errno, "signalfd"));
	error = namespaces_enter(options);
	if (error)
		_exit(fail(options->creator, -error, "make the shim's namespaces"));
	(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (options->oom_score_adj)
		set_oom_score(options->oom_score_adj);
	error = log_pipe(words);
	if (error)
		_exit(fail(options->creator, -error, "pipe"));
	start_helpers(options, words[1]);
	qemu = vm_spawn(options, words[1]);
	close(words[1]);
	if (qemu < 0)
		_exit(fail(options->creator, -qemu, "start QEMU"));
	give_memory(options);
	close_passed_on(options);
	serve(options, qemu, signals, words[0]);
}

int main(int argc, char **argv)
{
	static struct options options;
	const char *problem;
	struct wire_pid told = {0};
	int64_t began, joined;
	pid_t pid;
	int error;

	if (argc < 2 || strcmp(argv[1], "launch") != 0) {
		fprintf(stderr, "shim: started by rundctl, not by hand\n");
		return 2;
	}
	if (!options_parse(&options, argc - 1, argv + 1, &problem)) {
		fprintf(stderr, "shim: %s\n", problem);
		return 2;
	}
	options_close_others(&options);
	raise_descriptor_limit();
	fill_standard_descriptors();
	began = clock_ns(CLOCK_MONOTONIC);
	error = join_cgroups(&options);
	if (error)
		return fail(options.creator, -error, "join cgroup");
	joined = clock_ns(CLOCK_MONOTONIC);
	block_signals();
	pid = clone_shim(&options);
	if (pid < 0)
		return fail_clone(&options, errno);
	if (pid == 0)
		become_shim(&options);
	told.pid = (uint32_t)pid;
	told.join_us = (uint32_t)((joined - began) / NS_PER_US);
	told.clone_us = (uint32_t)((clock_ns(CLOCK_MONOTONIC) - joined) / NS_PER_US);
	tell_creator(options.creator, WIRE_PID, &told, sizeof(told));
	return 0;
}
