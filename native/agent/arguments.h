/* The arguments of a plan's operation, one after the other. */
#ifndef RUNDCTL_AGENT_ARGUMENTS_H
#define RUNDCTL_AGENT_ARGUMENTS_H

#include <stdint.h>

/* The arguments of one operation; the plan was checked, so reading them cannot fail. */
struct plan_arguments {
	const uint8_t *next;
	uint32_t count; /* arguments not yet read */
};

struct plan_bytes {
	const uint8_t *data;
	uint32_t length;
};

const char *next_string(struct plan_arguments *arguments);
uint64_t next_number(struct plan_arguments *arguments);
struct plan_bytes next_bytes(struct plan_arguments *arguments);

#endif
