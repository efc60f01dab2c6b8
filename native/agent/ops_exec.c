/* The last steps: working directory, environment, executable, the wait for START, and the exec. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "path.h"
#include "plan.h"

enum { PASSWD_MAX = 1024 * 1024, UMASK_DEFAULT = 022 };

/* As runc: once as root, which may be refused (a directory only its user may enter), then as the user if need be. */
int op_chdir(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *path = next_string(arguments);
	bool last = next_number(arguments) != 0;

	if (last && context->directory_entered)
		return 0;
	cleanup_close int fd = path_open(context, path, O_PATH | O_DIRECTORY);
	int error = fd < 0 ? fd : check(fchdir(fd));
	context->directory_entered = !error;
	return error == -EACCES && !last ? 0 : error;
}

/* All remaining arguments as a NULL-terminated vector with `spare` more places; the strings stay in the plan. */
static char **string_vector(struct plan_arguments *arguments, size_t spare)
{
	size_t count = arguments->count;
	char **vector = calloc(count + spare + 1, sizeof(*vector));

	for (size_t i = 0; vector && i < count; i++)
		vector[i] = (char *)(uintptr_t)next_string(arguments);
	return vector;
}

int op_env(struct plan_context *context, struct plan_arguments *arguments)
{
	char **environment = string_vector(arguments, 1); /* one for HOME */

	if (!environment)
		return -ENOMEM;
	free(context->environment);
	context->environment = environment;
	return 0;
}

/* The entry NAME=... of the environment; `name` includes the '='. */
static char **environment_entry(const struct plan_context *context, const char *name)
{
	for (char **entry = context->environment; entry && *entry; entry++)
		if (strncmp(*entry, name, strlen(name)) == 0)
			return entry;
	return NULL;
}

static char *read_file(int fd)
{
	struct stat status;

	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size <= 0 || status.st_size > PASSWD_MAX)
		return NULL;
	size_t size = (size_t)status.st_size;
	char *text = malloc(size + 1);
	ssize_t got = text ? read(fd, text, size) : -1;
	if (got < 0) {
		free(text);
		return NULL;
	}
	text[got] = '\0';
	return text;
}

/* The home of `uid` in one passwd(5) line, which is cut up; NULL if the line is somebody else's or malformed. */
static const char *line_home(char *line, uid_t uid)
{
	char *fields[7] = {0};
	char *end;

	for (size_t i = 0; i < 7 && line; i++)
		fields[i] = strsep(&line, ":");
	if (!fields[5] || !*fields[2] || !*fields[5] || strtoul(fields[2], &end, 10) != uid || *end)
		return NULL;
	return fields[5];
}

static const char *passwd_home(char *text, uid_t uid)
{
	const char *found = NULL;

	while (text && !found)
		found = line_home(strsep(&text, "\n"), uid);
	return found ? found : "/";
}

int op_home(struct plan_context *context, struct plan_arguments *arguments)
{
	uid_t uid = (uid_t)next_number(arguments);
	char **entry = environment_entry(context, "HOME=");
	char *home;

	if (!context->environment)
		return -EINVAL;
	if (entry && (*entry)[strlen("HOME=")])
		return 0;
	cleanup_close int fd = path_open(context, "/etc/passwd", O_RDONLY | O_NOCTTY | O_NONBLOCK);
	cleanup_free char *text = fd < 0 ? NULL : read_file(fd);
	if (asprintf(&home, "HOME=%s", passwd_home(text, uid)) < 0)
		return -ENOMEM;
	if (!entry)
		for (entry = context->environment; *entry;)
			entry++; /* the spare place of op_env */
	*entry = home;
	return 0;
}

/* Whether the caller may execute `path`: 0, -ENOENT, -EACCES (-EISDIR for a directory). */
static int executable(const char *path)
{
	struct stat status;

	if (stat(path, &status) < 0)
		return -errno;
	if (S_ISDIR(status.st_mode))
		return -EISDIR;
	if (!(status.st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)))
		return -EACCES;
	if (faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0)
		return 0;
	/* A seccomp filter older than faccessat2(2) answers EPERM; the exec itself will tell. */
	return errno == EPERM || errno == ENOSYS ? 0 : -errno;
}

static int find_by_path(struct plan_context *context, const char *name)
{
	int error = executable(name);

	if (error == -EISDIR)
		snprintf(context->detail, sizeof(context->detail), "is a directory");
	else if (error == -ENOENT)
		snprintf(context->detail, sizeof(context->detail), "stat %.120s", name);
	if (error)
		return error == -EISDIR ? -EACCES : error;
	context->executable = strdup(name);
	return context->executable ? 0 : -ENOMEM;
}

/* As runc's exec.LookPath: what cannot be executed is passed over, an empty element is the working directory. */
static int find_in_path(struct plan_context *context, const char *name, const char *path)
{
	for (const char *next = path; next; next = *next ? next + 1 : NULL) {
		size_t length = strcspn(next, ":");
		char *candidate;

		if (asprintf(&candidate, "%.*s/%s", length ? (int)length : 1, length ? next : ".", name) < 0)
			return -ENOMEM;
		if (executable(candidate) == 0) {
			context->executable = candidate;
			return 0;
		}
		free(candidate);
		next += length;
	}
	snprintf(context->detail, sizeof(context->detail), "executable file not found in $PATH");
	return -ENOENT;
}

int op_find(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *name = next_string(arguments);
	char **path = environment_entry(context, "PATH=");

	if (strchr(name, '/'))
		return find_by_path(context, name);
	return find_in_path(context, name, path && (*path)[strlen("PATH=")] ? *path + strlen("PATH=") : NULL);
}

int op_wait(struct plan_context *context, struct plan_arguments *arguments)
{
	struct status_record ready = {.kind = STATUS_READY};
	char byte;
	ssize_t got;

	(void)arguments;
	if (write(context->status, &ready, sizeof(ready)) != (ssize_t)sizeof(ready))
		return -EIO;
	do
		got = read(context->start, &byte, 1);
	while (got < 0 && errno == EINTR);
	if (got != 1)
		_exit(EXIT_FAILURE); /* the agent let go of this container: there is nobody to tell */
	return 0;
}

/* After the filter there is no system call but execve: what it needs is made before, and a failure is told without any. */
int op_exec(struct plan_context *context, struct plan_arguments *arguments)
{
	static char *no_environment[] = {NULL};
	char **argv = context->argv = string_vector(arguments, 0);

	if (!argv)
		return -ENOMEM;
	if (!context->umask_chosen)
		umask(UMASK_DEFAULT); /* the agent's 0 is for exact modes in the plan, not for containers */
	int error = load_filter(context);
	if (error)
		return error;
	const char *path = context->executable ? context->executable : argv[0];
	snprintf(context->detail, sizeof(context->detail), "exec %.180s", path); /* if it fails */
	execve(path, argv, context->environment ? context->environment : no_environment);
	context->no_program = true;
	return -errno;
}
