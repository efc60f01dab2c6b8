#include "oom.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Both versions' files have a line "oom_kill N" (cgroup-v2.rst, "memory.events"; v1 since Linux 4.13). */
unsigned long long oom_kills(int events)
{
	static const char key[] = "oom_kill ";
	char text[512];
	ssize_t size = events < 0 ? 0 : pread(events, text, sizeof(text) - 1, 0);

	text[size > 0 ? size : 0] = '\0';
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, sizeof(key) - 1) == 0)
			return strtoull(line + sizeof(key) - 1, NULL, 10);
	}
	return 0;
}
