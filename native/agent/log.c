#include "log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 160 };

static int log_fd = STDERR_FILENO;

void log_to_kernel(void)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);

	if (fd >= 0)
		log_fd = fd;
}

void log_line(const char *text)
{
	char line[LINE_SIZE];
	int length = snprintf(line, sizeof(line), "rundctl agent: %.120s\n", text);

	if (length > 0 && write(log_fd, line, strlen(line)) < 0)
		return; /* nowhere else to say it */
}

void log_error(const char *what, int error)
{
	char text[LINE_SIZE];

	snprintf(text, sizeof(text), "%.80s: %s", what, strerror(error));
	log_line(text);
}
