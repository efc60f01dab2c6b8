/* libFuzzer: a plan as somebody may send it. The first byte chooses its kind. What the check lets pass is read as the operations read it. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static volatile uint64_t sum; /* so that what is read is read */

static void read_number(const struct plan_bytes *bytes)
{
	uint64_t number;

	if (bytes->length == sizeof(number)) {
		memcpy(&number, bytes->data, sizeof(number));
		sum += number;
	}
}

/* Each argument twice, as bytes and as a string: an operation's signature has said which it is. */
static void read_operations(const uint8_t *plan)
{
	struct wire_plan head = plan_head(plan);
	const uint8_t *next = plan + sizeof(head);

	for (uint32_t index = 0; index < head.operations; index++) {
		struct wire_op op;

		memcpy(&op, next, sizeof(op));
		struct plan_arguments arguments = {.next = next + sizeof(op), .count = op.arguments};
		while (arguments.count) {
			struct plan_bytes bytes = next_bytes(&arguments);

			read_number(&bytes);
			for (size_t i = 0; i < bytes.length; i++)
				sum += ((const uint8_t *)bytes.data)[i];
			sum += strlen((const char *)bytes.data);
		}
		next += sizeof(op) + op.size;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *plan;

	if (size < 1)
		return 0;
	plan = malloc(size - 1); /* exactly as large: one byte beyond it is a finding */
	if (!plan)
		return 0;
	memcpy(plan, data + 1, size - 1);
	if (plan_check(plan, size - 1, data[0] & 1 ? PLAN_OF_CONTAINER : PLAN_OF_MACHINE).error == 0)
		read_operations(plan);
	free(plan);
	return 0;
}
