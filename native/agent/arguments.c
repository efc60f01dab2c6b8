#include "arguments.h"

#include <string.h>

struct plan_bytes next_bytes(struct plan_arguments *arguments)
{
	struct plan_bytes bytes;

	memcpy(&bytes.length, arguments->next, sizeof(bytes.length));
	bytes.data = arguments->next + sizeof(bytes.length);
	arguments->next = bytes.data + bytes.length + 1;
	arguments->count--;
	return bytes;
}

const char *next_string(struct plan_arguments *arguments)
{
	return (const char *)next_bytes(arguments).data;
}

uint64_t next_number(struct plan_arguments *arguments)
{
	uint64_t number;

	memcpy(&number, next_bytes(arguments).data, sizeof(number));
	return number;
}
