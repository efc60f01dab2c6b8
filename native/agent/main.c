/* The agent: PID 1 of the guest, and for tests a program that serves a descriptor it was given. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "boot.h"
#include "log.h"
#include "serve.h"

enum { EXIT_USAGE = 2 };

static int serve_descriptor(const char *number)
{
	int error;

	/* 0, 1 and 2 belong to the container in its child: they must not be free for pipes here. */
	while ((error = open("/dev/null", O_RDWR)) >= 0 && error <= STDERR_FILENO)
		;
	if (error >= 0)
		close(error);
	fcntl(atoi(number), F_SETFD, FD_CLOEXEC);
	error = serve(atoi(number), false);
	if (error)
		log_error("serve the descriptor", -error);
	return error ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void serve_guest(void)
{
	int port = boot();
	int error = port < 0 ? port : serve(port, true);

	log_error("this guest cannot serve", -error);
	power_off();
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "--fd") == 0)
		return serve_descriptor(argv[2]);
	/* Not argc: the kernel gives init every word of its command line that it does not know. */
	if (getpid() == 1)
		serve_guest();
	log_line("usage: agent --fd N");
	return EXIT_USAGE;
}
