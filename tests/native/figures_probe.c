/* figures.c on directories that a test has made, since those of a real kernel hold no lies: `figures_probe read DIRECTORY` and
 * `figures_probe processes DIRECTORY CONTAINER`, with the request's payload on stdin; the answer's payload on stdout. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "figures.h"

int main(int argc, char **argv)
{
	static uint8_t request[WIRE_MESSAGE_MAX];
	size_t size = fread(request, 1, sizeof(request), stdin);
	/* Exactly as large as what it is given: a byte too much is the sanitizer's. */
	uint8_t *payload = malloc(size ? size : 1), *answer = malloc(WIRE_PAYLOAD_MAX);
	int directory = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t got = -EINVAL;

	if (!payload || !answer)
		return 2;
	memcpy(payload, request, size);
	if (strcmp(argv[1], "read") == 0)
		got = figures_read(directory, payload, size, answer);
	else if (argc == 4)
		got = figures_processes(directory, (uint16_t)atoi(argv[3]), payload, size, answer);
	if (got > 0)
		fwrite(answer, 1, (size_t)got, stdout);
	fprintf(stderr, "%zd\n", got);
	free(payload);
	free(answer);
	close(directory);
	return 0;
}
