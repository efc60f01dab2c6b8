/* The shim: one per container on the host (docs/adr/0003-process-model.md). */
#ifndef RUNDCTL_SHIM_H
#define RUNDCTL_SHIM_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A bind mount's source, to be shown to QEMU. */
struct volume {
	int fd; /* O_PATH */
	bool read_only;
	bool is_file;
	bool recursive; /* with what is mounted below */
};

/* A program that serves files beside QEMU, and without which the VM cannot live. It finds what it serves in the place of the container's own
 * directory. */
struct helper {
	const char *name; /* the reason of an ending that is its fault */
	int keep;	  /* the one descriptor that it inherits */
	int directory;	  /* O_PATH: it serves a copy of this mount, with what is mounted below; -1: the volumes */
	bool read_only;
	char **argv;
	pid_t pid;
};

/* The command line; descriptors are -1 when not given. */
struct options {
	int creator, agent, qmp, control, state, rootfs;
	int log; /* what QEMU and the helpers say */
	bool rootfs_writable;
	int cgroup2;
	int oom_events; /* memory.events of v2 or memory.oom_control of v1: counts the host's kills for want of memory */
	int *cgroups;	/* open cgroup.procs files of v1 hierarchies */
	size_t cgroup_count;
	int *keep; /* what QEMU inherits */
	size_t keep_count;
	struct volume *volumes;
	size_t volume_count;
	int exported; /* the directory that QEMU serves as the root file system: under this number it finds a copy of the mount; -1: none */
	bool exported_read_only;
	int volumes_fd; /* the number under which QEMU finds the assembled volumes; -1: it does not serve them */
	struct helper *helpers;
	size_t helper_count;
	int copy_from, copy_to; /* memory that the guest is to have a copy of, and the file of its own */
	const char *oom_score_adj;
	bool small_pages; /* no transparent huge pages for QEMU */
	char **qemu;	  /* argv */
};

/* options.c: true, or false with `*problem` telling why. */
bool options_parse(struct options *options, int argc, char **argv, const char **problem);
/* Closes every descriptor above 2 that the command line does not name. */
void options_close_others(const struct options *options);

/* vm.c: fork QEMU, or a helper; its pid, or -errno. */
/* `words`: what is to be its stdout and stderr. */
pid_t vm_spawn(const struct options *options, int words);
pid_t helper_spawn(const struct options *options, const struct helper *helper, int words);
enum { LOG_PIECES = 16 }; /* of the log, which a pipe holds */
/* log.c: a pipe for the words of QEMU and the helpers, which neither end ever waits for; -errno. */
int log_pipe(int ends[2]);
/* Moves what has come into the log, in at most `pieces` pieces. When all writers are gone, `*words` is closed, and -1. */
void log_take(int log, int *words, int pieces);
/* memory.c: what is in one file and is not zero is in the other, too; -errno. */
int memory_copy(int from, int to);

/* assembly.c: for the process that calls, once, in a mount namespace of its own from here on. -errno. */
int namespace_enter(void);
/* Shows the volumes, by their numbers, in the place of the container's own directory; a descriptor of it. */
int volumes_assemble(const struct options *options);
/* Shows a copy of the mount that `fd` lies on there. */
int directory_show(const struct options *options, int fd, bool read_only);
/* Both of them for QEMU: the volumes, then the exported directory over them, each under the number that QEMU was told. */
int exports_assemble(const struct options *options);
/* Where an open file is; -errno. */
int path_of(int fd, char path[PATH_MAX]);

/* mountinfo.c: one line: a mount's number, what of its file system is mounted, and where. */
struct mounted {
	unsigned long long number, parent;
	char *root, *target;
};
/* By targets: what is mounted in a mount comes after it. */
struct mounts {
	char *text;
	struct mounted *list;
	size_t count;
	bool is_read;
};
/* Reads the table, unless it was read since it was freed; -errno. */
int mounts_read(struct mounts *mounts);
void mounts_free(struct mounts *mounts);
const struct mounted *mounts_find(const struct mounts *mounts, unsigned long long number);
/* Whether the table shows it from a directory on, which is at `path` in the mount `source`: below it, and nothing is mounted over it. */
bool mounts_shows(const struct mounts *mounts, const struct mounted *mounted, unsigned long long source, const char *path);
/* The path from the directory on, or NULL if it is not below it; an empty directory: NULL. */
const char *path_below(const char *path, const char *directory);

/* copy.c: one mount of a copy. */
struct piece {
	char *path;		   /* from the source on; "": the source's */
	size_t parent;		   /* the piece that this one is mounted in */
	const char *rest;	   /* the path from there on */
	unsigned long long number; /* of the mount that it is a copy of */
	int place;		   /* that mount, O_PATH, while it is collected */
	int tree;		   /* the copy */
	bool is_laid;		   /* in the guest's sight */
	bool is_empty;		   /* nothing is in the copy, or, of a procfs, less */
	bool read_only;
	char *part; /* if that mount is a procfs's: what of it, as a path from its root on; NULL: of processes, or of something else */
};
/* A source's copy: first the source's, then what is mounted below, each after what it is mounted in. */
struct copy {
	struct piece *pieces;
	size_t count;
	bool recursive, read_only;
};
/* Copies the mount that `source` lies on, and if `recursive` each one below it, in the host's mount namespace, for a mount elsewhere cannot be copied. A procfs
 * is not: nothing is in its place. -errno; -EBUSY: what is mounted there is renamed or changed all the time. */
int copy_collect(struct copy *copy, struct mounts *mounts, int source, bool recursive, bool read_only);
/* Mounts all of it; -errno as above. */
int copy_lay(struct copy *copy, int directory, const char *name);
void copy_free(struct copy *copy);
/* A descriptor, O_PATH, of what is there without leaving the directory or following a link; -errno. */
int open_beneath(int directory, const char *path);

/* procfs.c: a detached mount of nothing for a directory or file; a descriptor or -errno. */
int mount_nothing(int place);
/* Gives each procfs of the copies a procfs without processes in its place; -errno. One is made for all, on `path`, where it stays below what is mounted there
 * next. */
int procfs_cover(struct copy *copies, size_t count, const char *path);

/* capabilities.c: what a program that this process becomes may have of them: to serve files, and as a helper to sandbox itself; -errno. */
int capabilities_limit(bool helper);

/* root.c: makes the container's rootfs, as the host can see it, the shim's root; -errno. */
int root_enter(const struct options *options);
/* root.c: a private, detached copy of the mount that `fd` lies on, of nothing that is mounted below, without devices, read-only if asked; a descriptor or
 * -errno. */
int mount_copy(int fd, bool read_only);

/* serve.c: everything after the start; never returns. */
void serve(const struct options *options, pid_t qemu, int signals, int words) __attribute__((noreturn));

/* oom.c: how often the kernel has killed in the cgroup for want of memory; 0 if that cannot be told. */
unsigned long long oom_kills(int events);

/* record.c */
struct ending {
	int code;	    /* exit code of the shim */
	const char *reason; /* container, qemu, a helper's name, oom, agent, creator, stopped, internal */
	int status;	    /* wait status behind it */
	bool oom;	    /* memory ran out: the container's in its guest, or (reason oom) the VM's on the host */
	char detail[192];
};
void record_write(int state, const struct ending *ending);
/* Makes sure of the place for the mark `started`; -errno. */
int record_starting(int state);
void record_started(int state);
/* Makes or removes the mark `paused`; -errno if that fails. */
int record_paused(int state, bool paused);

#endif
