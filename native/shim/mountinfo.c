/* The table of mounts of this process's mount namespace (proc_pid_mountinfo(5)). It is not read in one moment, and has no line of a mount whose directory
 * somebody has just renamed out of what the mount around it shows. So it tells where to look, and nothing that must be true. */
#include "mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"

enum { CHUNK = 4096 };

/* Octal escapes undone, in place. */
static void unescape(char *text)
{
	char *to = text;

	for (; *text; text++) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*to++ = *text;
		}
	}
	*to = '\0';
}

/* NUMBER PARENT DEVICE ROOT TARGET ... */
static bool parse(char *line, struct mounted *mounted)
{
	mounted->number = strtoull(line, &line, 10);
	mounted->parent = strtoull(line, &line, 10);
	for (int field = 0; field < 2; field++)
		(void)strsep(&line, " ");
	mounted->root = strsep(&line, " ");
	mounted->target = strsep(&line, " ");
	if (!mounted->root || !mounted->target)
		return false;
	unescape(mounted->root);
	unescape(mounted->target);
	return true;
}

static int read_text(char **text)
{
	cleanup_close int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	size_t size = 0, room = 0;
	ssize_t got;

	if (fd < 0)
		return -errno;
	do {
		if (room - size < CHUNK) {
			char *grown = realloc(*text, room += (size_t)4 * CHUNK);

			if (!grown)
				return -ENOMEM;
			*text = grown;
		}
		got = read(fd, *text + size, CHUNK - 1);
		if (got < 0)
			return -errno;
		size += (size_t)got;
	} while (got > 0);
	(*text)[size] = '\0';
	return 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(((const struct mounted *)a)->target, ((const struct mounted *)b)->target);
}

int mounts_read(struct mounts *mounts)
{
	char *rest, *line;
	int error;

	if (mounts->is_read)
		return 0;
	mounts_free(mounts);
	error = read_text(&mounts->text);
	rest = mounts->text;
	while (!error && (line = strsep(&rest, "\n"))) {
		if (mounts->count % CHUNK == 0) {
			struct mounted *grown = realloc(mounts->list, (mounts->count + CHUNK) * sizeof(*grown));

			if (!grown)
				return -ENOMEM;
			mounts->list = grown;
		}
		mounts->count += parse(line, &mounts->list[mounts->count]);
	}
	if (error)
		return error;
	if (mounts->count)
		qsort(mounts->list, mounts->count, sizeof(*mounts->list), compare);
	mounts->is_read = true;
	return 0;
}

const struct mounted *mounts_find(const struct mounts *mounts, unsigned long long number)
{
	for (size_t i = 0; i < mounts->count; i++)
		if (mounts->list[i].number == number)
			return &mounts->list[i];
	return NULL;
}

const char *path_below(const char *path, const char *directory)
{
	size_t length = strcmp(directory, "/") == 0 ? 0 : strlen(directory);

	if (strncmp(path, directory, length) != 0)
		return NULL;
	return path[length] == '/' && path[length + 1] ? path + length + 1 : NULL;
}

/* Whether it is mounted in the other, however deep. */
static bool is_inside(const struct mounts *mounts, const struct mounted *mounted, unsigned long long number)
{
	for (size_t depth = 0; mounted && depth < mounts->count; depth++) {
		if (mounted->parent == number)
			return true;
		mounted = mounts_find(mounts, mounted->parent);
	}
	return false;
}

bool mounts_shows(const struct mounts *mounts, const struct mounted *mounted, unsigned long long source, const char *path)
{
	if (!is_inside(mounts, mounted, source))
		return false;
	for (size_t i = 0; i < mounts->count; i++) {
		const struct mounted *other = &mounts->list[i];
		bool is_around = is_inside(mounts, mounted, other->number);

		/* Over the source itself: it was mounted after that was opened. */
		if (is_around && other->number != source && strcmp(other->target, path) == 0 && is_inside(mounts, other, source))
			return false;
		if (is_around || other == mounted || !path_below(other->target, path))
			continue;
		if (strcmp(other->target, mounted->target) == 0 || path_below(mounted->target, other->target))
			return false;
	}
	return true;
}

void mounts_free(struct mounts *mounts)
{
	free(mounts->list);
	free(mounts->text);
	*mounts = (struct mounts){0};
}
