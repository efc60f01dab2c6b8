#include "cgroup_walk.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"

/* Strings one after the other: a letter, a name, NUL. */
struct stack {
	char *bytes;
	size_t size;
	size_t capacity;
};

enum { ENTER = '+', LEAVE = '-' };

static void stack_free(struct stack *stack)
{
	free(stack->bytes);
}

static int stack_push(struct stack *stack, const char *name)
{
	size_t length = strlen(name) + 1, needed = stack->size + 1 + length;

	if (needed > stack->capacity) {
		char *bytes = realloc(stack->bytes, 2 * needed);
		if (!bytes)
			return -ENOMEM;
		stack->bytes = bytes;
		stack->capacity = 2 * needed;
	}
	stack->bytes[stack->size] = ENTER;
	memcpy(stack->bytes + stack->size + 1, name, length);
	stack->size = needed;
	return 0;
}

/* The letter before the last name; valid until the next push. */
static char *stack_top(const struct stack *stack)
{
	char *before = memrchr(stack->bytes, '\0', stack->size - 1);

	return before ? before + 1 : stack->bytes;
}

static void stack_pop(struct stack *stack)
{
	stack->size = (size_t)(stack_top(stack) - stack->bytes);
}

static int open_below(int cgroup, const char *name)
{
	int fd = openat(cgroup, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* All directories but . and ..: others that begin with a dot are as good a cgroup's name as any. */
static int push_children(struct stack *stack, int cgroup)
{
	int own = open_below(cgroup, ".");
	cleanup_closedir DIR *directory = own < 0 ? NULL : fdopendir(own);
	struct dirent *entry;
	int error = 0;

	if (!directory) {
		error = own < 0 ? own : -errno;
		close_fd(&own);
	}
	while (!error && (entry = readdir(directory)))
		if (entry->d_type == DT_DIR && strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			error = stack_push(stack, entry->d_name);
	return error;
}

static int go(int *here, const char *name)
{
	int fd = open_below(*here, name);

	if (fd < 0)
		return fd;
	close_fd(here);
	*here = fd;
	return 0;
}

static int enter_top(struct stack *stack, int *here, const struct cgroup_visitor *visitor)
{
	char *top = stack_top(stack);
	int error = go(here, top + 1);

	if (error == -ENOENT) {
		stack_pop(stack);
		return 0;
	}
	if (error)
		return error;
	*top = LEAVE;
	if (visitor->enter)
		visitor->enter(*here, visitor->data);
	return push_children(stack, *here);
}

/* By "..", since a descriptor a level would be a limit; no cgroup of version 2 can be renamed. */
static int leave_top(struct stack *stack, int *here, const struct cgroup_visitor *visitor)
{
	int error = go(here, "..");

	if (!error && visitor->leave)
		visitor->leave(*here, stack_top(stack) + 1, visitor->data);
	stack_pop(stack);
	return error;
}

int cgroup_walk(int cgroup, const struct cgroup_visitor *visitor, int64_t deadline_ms)
{
	__attribute__((cleanup(stack_free))) struct stack stack = {0};
	cleanup_close int here = open_below(cgroup, ".");
	int error = here < 0 ? here : push_children(&stack, here);

	while (!error && stack.size) {
		if (clock_ms(CLOCK_MONOTONIC) > deadline_ms)
			return -ETIMEDOUT;
		if (*stack_top(&stack) == ENTER)
			error = enter_top(&stack, &here, visitor);
		else
			error = leave_top(&stack, &here, visitor);
	}
	return error;
}
