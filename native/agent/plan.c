/* The executor: checks the framing of a plan, then runs operation after operation through one table. */
#include "plan.h"

#include <sched.h>
#include <string.h>

#include "cleanup.h"

enum where {
	NEVER,	      /* no such operation */
	ANYWHERE,     /* also in the VM's own plan, where it changes the guest and not the agent */
	IN_CONTAINER, /* changes the process that runs it */
};

/* `signature`: s string, u number, b bytes; the last may be followed by * (any number of these) or + (at least one). */
struct operation {
	const char *signature;
	plan_operation *run;
	enum where where;
};

static const struct operation operations[OP_LAST + 1] = {
	[OP_MOUNT] = {"sssusuu", op_mount, ANYWHERE},
	[OP_BIND] = {"ssuu", op_bind, ANYWHERE},
	[OP_REMOUNT] = {"suuu", op_remount, ANYWHERE},
	[OP_PROPAGATION] = {"su", op_propagation, ANYWHERE},
	[OP_ROOT] = {"s", op_root, IN_CONTAINER},
	[OP_MKDIR] = {"suuu", op_mkdir, ANYWHERE},
	[OP_MKNOD] = {"suuuuu", op_mknod, ANYWHERE},
	[OP_SYMLINK] = {"ss", op_symlink, ANYWHERE},
	[OP_WRITE] = {"ss", op_write, ANYWHERE},
	[OP_HOSTNAME] = {"s", op_hostname, ANYWHERE},
	[OP_DOMAINNAME] = {"s", op_domainname, ANYWHERE},
	[OP_LINK_UP] = {"s", op_link_up, ANYWHERE},
	[OP_PIVOT] = {"u", op_pivot, IN_CONTAINER},
	[OP_MASK] = {"s", op_mask, IN_CONTAINER},
	[OP_READONLY] = {"s", op_readonly, ANYWHERE},
	[OP_RLIMIT] = {"uuu", op_rlimit, IN_CONTAINER},
	[OP_MACHINE_ID] = {"ss", op_machine_id, IN_CONTAINER},
	[OP_KEYRING] = {"s", op_keyring, IN_CONTAINER},
	[OP_UMASK] = {"u", op_umask, IN_CONTAINER},
	[OP_NO_NEW_PRIVS] = {"", op_no_new_privs, IN_CONTAINER},
	[OP_STDIO_OWNER] = {"uu", op_stdio_owner, IN_CONTAINER},
	[OP_BOUNDING] = {"u", op_bounding, IN_CONTAINER},
	[OP_IDS] = {"uuu*", op_ids, IN_CONTAINER},
	[OP_CAPS] = {"uuuu", op_caps, IN_CONTAINER},
	[OP_SECCOMP] = {"ub", op_seccomp, IN_CONTAINER},
	[OP_CHDIR] = {"su", op_chdir, IN_CONTAINER},
	[OP_ENV] = {"s*", op_env, IN_CONTAINER},
	[OP_HOME] = {"u", op_home, IN_CONTAINER},
	[OP_FIND] = {"s", op_find, IN_CONTAINER},
	[OP_WAIT] = {"", op_wait, IN_CONTAINER},
	[OP_EXEC] = {"s+", op_exec, IN_CONTAINER},
	[OP_DEVICE_FILTER] = {"sb", op_device_filter, ANYWHERE},
	[OP_DEVICE_FILTER_READY] = {"b", op_device_filter_ready, ANYWHERE},
	[OP_STREAMS] = {"uu", op_streams, IN_CONTAINER},
};

/* New namespaces a container may be born into. User namespaces are not among them: ADR 2. */
#define CONTAINER_NAMESPACES (uint64_t)(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWTIME)

/* Whether the bytes are what one letter of a signature asks for. */
static bool fits(char type, struct plan_bytes bytes)
{
	if (type == 'u')
		return bytes.length == sizeof(uint64_t);
	return type == 'b' || memchr(bytes.data, '\0', bytes.length) == NULL;
}

/* The letter for the next argument; 0 when no further argument is allowed. Moves on, except at a repetition. */
static char next_type(const char **signature)
{
	char type = **signature;
	char repeat = type ? (*signature)[1] : '\0';

	if (repeat == '+' || repeat == '*') {
		if (repeat == '+')
			*signature = type == 's' ? "s*" : "u*";
		return type;
	}
	if (type)
		++*signature;
	return type;
}

static bool signature_done(const char *signature)
{
	return *signature == '\0' || signature[1] == '*';
}

/* Whether the arguments of one operation fill its `size` bytes and have the types of its signature. */
static bool arguments_fit(const char *signature, const struct wire_op *op, const uint8_t *body)
{
	struct plan_arguments arguments = {.next = body, .count = op->arguments};
	const uint8_t *end = body + op->size;

	while (arguments.count) {
		uint32_t length;
		char type = next_type(&signature);

		if (!type || (size_t)(end - arguments.next) < sizeof(length))
			return false;
		memcpy(&length, arguments.next, sizeof(length));
		if ((size_t)(end - arguments.next) - sizeof(length) < (size_t)length + 1)
			return false;
		if (arguments.next[sizeof(length) + length] != '\0' || !fits(type, next_bytes(&arguments)))
			return false;
	}
	return arguments.next == end && signature_done(signature);
}

static bool operation_fits(const struct wire_op *op, const uint8_t *body, enum plan_kind kind)
{
	if (op->opcode > OP_LAST || operations[op->opcode].where == NEVER)
		return false;
	if (kind == PLAN_OF_MACHINE && operations[op->opcode].where != ANYWHERE)
		return false;
	return arguments_fit(operations[op->opcode].signature, op, body);
}

/* A container's plan reports ready exactly once, ends with EXEC, and never runs in the agent's mount namespace. */
static bool structure_fits(const struct wire_plan *head, uint32_t waits, uint32_t execs, uint32_t last)
{
	if (head->clone_flags & ~CONTAINER_NAMESPACES || !(head->clone_flags & CLONE_NEWNS))
		return false;
	return waits == 1 && execs == 1 && last == OP_EXEC;
}

struct wire_plan plan_head(const uint8_t *plan)
{
	struct wire_plan head;

	memcpy(&head, plan, sizeof(head));
	return head;
}

struct plan_failure plan_check(const uint8_t *plan, size_t size, enum plan_kind kind)
{
	struct plan_failure malformed = {.error = EPROTO};
	struct wire_op op = {0};
	uint32_t waits = 0, execs = 0;

	if (size < sizeof(struct wire_plan))
		return malformed;
	struct wire_plan head = plan_head(plan);
	const uint8_t *next = plan + sizeof(head), *end = plan + size;
	for (; malformed.index < head.operations; malformed.index++) {
		if ((size_t)(end - next) < sizeof(op))
			return malformed;
		memcpy(&op, next, sizeof(op));
		next += sizeof(op);
		if ((size_t)(end - next) < op.size || !operation_fits(&op, next, kind))
			return malformed;
		next += op.size;
		waits += op.opcode == OP_WAIT;
		execs += op.opcode == OP_EXEC;
	}
	if (next != end || head.reserved || (kind == PLAN_OF_CONTAINER && !structure_fits(&head, waits, execs, op.opcode)))
		return malformed;
	return (struct plan_failure){0};
}

struct plan_failure plan_run(struct plan_context *context, const uint8_t *plan)
{
	struct wire_plan head = plan_head(plan);
	const uint8_t *next = plan + sizeof(head);

	for (uint32_t index = 0; index < head.operations; index++) {
		struct wire_op op;

		memcpy(&op, next, sizeof(op));
		struct plan_arguments arguments = {.next = next + sizeof(op), .count = op.arguments};
		int error = operations[op.opcode].run(context, &arguments);
		if (error)
			return (struct plan_failure){.error = -error, .index = index};
		next += sizeof(op) + op.size;
	}
	return (struct plan_failure){0};
}

void plan_context_init(struct plan_context *context)
{
	*context = (struct plan_context){.root = -1, .null_mount = -1, .status = -1, .start = -1};
}

void plan_context_release(struct plan_context *context)
{
	close_fd(&context->root);
	close_fd(&context->null_mount);
	free(context->environment);
	free(context->executable);
	free(context->argv);
	free(context->filter.filter);
}
