#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	DESCRIPTOR_MAX = 1 << 20,
	PATIENCE_MAX = 100,
};

enum key {
	KEY_NAME = 1,
	KEY_CREATOR,
	KEY_AGENT,
	KEY_QMP,
	KEY_CONTROL,
	KEY_STATE,
	KEY_ROOTFS,
	KEY_ROOTFS_RW,
	KEY_LOG,
	KEY_CGROUP,
	KEY_CGROUP2,
	KEY_OOM_EVENTS,
	KEY_ATTACH,
	KEY_KEEP,
	KEY_VOLUME,
	KEY_VOLUMES_FD,
	KEY_EXPORT,
	KEY_OOM_SCORE_ADJ,
	KEY_HOSTNAME,
	KEY_DOMAINNAME,
	KEY_SMALL_PAGES,
	KEY_PATIENCE,
	KEY_HELPER,
	KEY_COPY,
};

static const struct option long_options[] = {
	{"name", required_argument, NULL, KEY_NAME},
	{"creator", required_argument, NULL, KEY_CREATOR},
	{"agent", required_argument, NULL, KEY_AGENT},
	{"qmp", required_argument, NULL, KEY_QMP},
	{"control", required_argument, NULL, KEY_CONTROL},
	{"state", required_argument, NULL, KEY_STATE},
	{"rootfs", required_argument, NULL, KEY_ROOTFS},
	{"rootfs-rw", no_argument, NULL, KEY_ROOTFS_RW},
	{"log", required_argument, NULL, KEY_LOG},
	{"cgroup", required_argument, NULL, KEY_CGROUP},
	{"cgroup2", required_argument, NULL, KEY_CGROUP2},
	{"oom-events", required_argument, NULL, KEY_OOM_EVENTS},
	{"attach", required_argument, NULL, KEY_ATTACH},
	{"keep", required_argument, NULL, KEY_KEEP},
	{"volume", required_argument, NULL, KEY_VOLUME},
	{"volumes-fd", required_argument, NULL, KEY_VOLUMES_FD},
	{"export", required_argument, NULL, KEY_EXPORT},
	{"oom-score-adj", required_argument, NULL, KEY_OOM_SCORE_ADJ},
	{"hostname", required_argument, NULL, KEY_HOSTNAME},
	{"domainname", required_argument, NULL, KEY_DOMAINNAME},
	{"small-pages", no_argument, NULL, KEY_SMALL_PAGES},
	{"patience", required_argument, NULL, KEY_PATIENCE},
	{"helper", required_argument, NULL, KEY_HELPER},
	{"copy", required_argument, NULL, KEY_COPY},
	{NULL, 0, NULL, 0},
};

/* A number from 0 to `most` at the start of `text`, which ends at `end` (a comma, or the end of the string). */
static bool parse_number(const char *text, char end, int most, int *number, const char **rest)
{
	char *stop;
	long value;

	errno = 0;
	value = strtol(text, &stop, 10);
	if (errno || stop == text || *stop != end || value < 0 || value > most)
		return false;
	*number = (int)value;
	if (rest)
		*rest = stop + 1;
	return true;
}

static bool parse_descriptor(const char *text, char end, int *fd, const char **rest)
{
	return parse_number(text, end, DESCRIPTOR_MAX, fd, rest);
}

static bool append(int **list, size_t *count, const char *text)
{
	int *grown = realloc(*list, (*count + 1) * sizeof(**list));

	if (!grown)
		return false;
	*list = grown;
	if (!parse_descriptor(text, '\0', &grown[*count], NULL))
		return false;
	(*count)++;
	return true;
}

/* "KIND,NAME": the name, if it is that kind. */
static const char *name_after(const char *text, const char *kind)
{
	size_t length = strlen(kind);

	return strncmp(text, kind, length) == 0 && text[length] == ',' ? text + length + 1 : NULL;
}

static bool is_name(const char *text)
{
	return *text && !strchr(text, '/') && strcmp(text, ".") != 0 && strcmp(text, "..") != 0;
}

/* FD,ro|rw,dir|tree|file,NAME */
static bool append_volume(struct options *options, const char *text)
{
	struct volume *grown = realloc(options->volumes, (options->volume_count + 1) * sizeof(*grown));
	struct volume *volume;
	const char *words, *file, *tree;

	if (!grown)
		return false;
	options->volumes = grown;
	volume = &grown[options->volume_count];
	if (!parse_descriptor(text, ',', &volume->fd, &words))
		return false;
	volume->read_only = strncmp(words, "ro,", 3) == 0;
	if (!volume->read_only && strncmp(words, "rw,", 3) != 0)
		return false;
	file = name_after(words + 3, "file");
	tree = name_after(words + 3, "tree");
	volume->is_file = file != NULL;
	volume->recursive = tree != NULL;
	volume->name = file ? file : tree ? tree : name_after(words + 3, "dir");
	if (!volume->name || !is_name(volume->name))
		return false;
	options->volume_count++;
	return true;
}

/* FD,ro|rw */
static bool take_export(struct options *options, const char *text)
{
	const char *words;

	if (!parse_descriptor(text, ',', &options->exported, &words))
		return false;
	options->exported_read_only = strcmp(words, "ro") == 0;
	return options->exported_read_only || strcmp(words, "rw") == 0;
}

/* NAME,KEEP,volumes or NAME,KEEP,ro|rw,DIRECTORY */
static bool append_helper(struct options *options, char *text)
{
	struct helper *grown = realloc(options->helpers, (options->helper_count + 1) * sizeof(*grown));
	struct helper *helper;
	char *comma = strchr(text, ',');
	const char *words;

	if (!grown)
		return false;
	options->helpers = grown;
	helper = &grown[options->helper_count];
	*helper = (struct helper){.name = text, .directory = -1};
	if (!comma || !parse_descriptor(comma + 1, ',', &helper->keep, &words))
		return false;
	*comma = '\0';
	options->helper_count++;
	if (strcmp(words, "volumes") == 0)
		return true;
	helper->read_only = strncmp(words, "ro,", 3) == 0;
	return (helper->read_only || strncmp(words, "rw,", 3) == 0) && parse_descriptor(words + 3, '\0', &helper->directory, NULL);
}

/* The helpers' command lines, each up to a word `;`, and then QEMU's. */
static bool take_commands(struct options *options, char **words)
{
	for (size_t i = 0; i < options->helper_count; i++) {
		options->helpers[i].argv = words;
		while (*words && strcmp(*words, ";") != 0)
			words++;
		if (!*words || words == options->helpers[i].argv)
			return false;
		*words++ = NULL;
	}
	options->qemu = words;
	return words[0] != NULL;
}

/* Volumes are QEMU's to serve, or a helper's. */
static bool has_server(const struct options *options)
{
	bool served = options->volumes_fd >= 0;

	for (size_t i = 0; i < options->helper_count; i++)
		served = served || options->helpers[i].directory < 0;
	return served;
}

static bool take(struct options *options, int key, char *value)
{
	const char *rest;

	switch (key) {
	case KEY_NAME: /* only for ps */
		return true;
	case KEY_CREATOR:
		return parse_descriptor(value, '\0', &options->creator, NULL);
	case KEY_AGENT:
		return parse_descriptor(value, '\0', &options->agent, NULL);
	case KEY_QMP:
		return parse_descriptor(value, '\0', &options->qmp, NULL);
	case KEY_CONTROL:
		return parse_descriptor(value, '\0', &options->control, NULL);
	case KEY_STATE:
		return parse_descriptor(value, '\0', &options->state, NULL);
	case KEY_ROOTFS:
		return parse_descriptor(value, '\0', &options->rootfs, NULL);
	case KEY_LOG:
		return parse_descriptor(value, '\0', &options->log, NULL);
	case KEY_CGROUP2:
		return parse_descriptor(value, '\0', &options->cgroup2, NULL);
	case KEY_OOM_EVENTS:
		return parse_descriptor(value, '\0', &options->oom_events, NULL);
	case KEY_ATTACH:
		return parse_descriptor(value, '\0', &options->attach, NULL);
	case KEY_VOLUMES_FD:
		return parse_descriptor(value, '\0', &options->volumes_fd, NULL);
	case KEY_EXPORT:
		return take_export(options, value);
	case KEY_ROOTFS_RW:
		return options->rootfs_writable = true;
	case KEY_SMALL_PAGES:
		return options->small_pages = true;
	case KEY_PATIENCE:
		return parse_number(value, '\0', PATIENCE_MAX, &options->patience, NULL) && options->patience > 0;
	case KEY_OOM_SCORE_ADJ:
		return (options->oom_score_adj = value) != NULL;
	case KEY_HOSTNAME:
		return (options->hostname = value) != NULL;
	case KEY_DOMAINNAME:
		return (options->domainname = value) != NULL;
	case KEY_CGROUP:
		return append(&options->cgroups, &options->cgroup_count, value);
	case KEY_KEEP:
		return append(&options->keep, &options->keep_count, value);
	case KEY_VOLUME:
		return append_volume(options, value);
	case KEY_HELPER:
		return append_helper(options, value);
	case KEY_COPY:
		return parse_descriptor(value, ',', &options->copy_from, &rest) && parse_descriptor(rest, '\0', &options->copy_to, NULL);
	default:
		return false;
	}
}

bool options_parse(struct options *options, int argc, char **argv, const char **problem)
{
	int key;

	*options = (struct options){.creator = -1,
				    .agent = -1,
				    .qmp = -1,
				    .control = -1,
				    .state = -1,
				    .rootfs = -1,
				    .log = -1,
				    .cgroup2 = -1,
				    .oom_events = -1,
				    .attach = -1,
				    .volumes_fd = -1,
				    .exported = -1,
				    .copy_from = -1,
				    .copy_to = -1,
				    .patience = 1};
	opterr = 0;
	while ((key = getopt_long(argc, argv, "+", long_options, NULL)) != -1) {
		if (!take(options, key, optarg)) {
			*problem = argv[optind - 1];
			return false;
		}
	}
	*problem = "a required option is missing";
	return take_commands(options, argv + optind) && options->creator >= 0 && options->agent >= 0 && options->qmp >= 0 && options->control >= 0 &&
	       options->state >= 0 && options->rootfs >= 0 && options->log >= 0 && options->hostname && options->domainname &&
	       (options->volume_count == 0 || has_server(options));
}

static int compare(const void *a, const void *b)
{
	int first = *(const int *)a, second = *(const int *)b;

	return (first > second) - (first < second);
}

void options_close_others(const struct options *options)
{
	const int single[] = {2,
			      options->creator,
			      options->agent,
			      options->qmp,
			      options->control,
			      options->state,
			      options->rootfs,
			      options->log,
			      options->cgroup2,
			      options->oom_events,
			      options->attach,
			      options->copy_from,
			      options->copy_to,
			      options->exported};
	size_t count = 0,
	       most = sizeof(single) / sizeof(*single) + options->cgroup_count + options->keep_count + options->volume_count + 2 * options->helper_count;
	int *named = calloc(most, sizeof(*named));

	if (!named)
		abort();
	for (size_t i = 0; i < sizeof(single) / sizeof(*single); i++)
		if (single[i] >= 2)
			named[count++] = single[i];
	for (size_t i = 0; i < options->cgroup_count; i++)
		named[count++] = options->cgroups[i];
	for (size_t i = 0; i < options->keep_count; i++)
		named[count++] = options->keep[i];
	for (size_t i = 0; i < options->volume_count; i++)
		named[count++] = options->volumes[i].fd;
	for (size_t i = 0; i < options->helper_count; i++) {
		named[count++] = options->helpers[i].keep;
		if (options->helpers[i].directory >= 0)
			named[count++] = options->helpers[i].directory;
	}
	qsort(named, count, sizeof(*named), compare);
	for (size_t i = 0; i + 1 < count; i++)
		if (named[i + 1] > named[i] + 1)
			(void)syscall(SYS_close_range, named[i] + 1, named[i + 1] - 1, 0);
	(void)syscall(SYS_close_range, named[count - 1] + 1, ~0U, 0);
	free(named);
}
