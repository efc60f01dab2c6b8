/* The command line of the shim: what it is to run, and the descriptors that it was given for it. */
#ifndef RUNDCTL_SHIM_OPTIONS_H
#define RUNDCTL_SHIM_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A bind mount's source, to be shown to QEMU. */
struct volume {
	int fd; /* O_PATH */
	bool read_only;
	bool is_file;
	bool recursive;	  /* with what is mounted below */
	const char *name; /* its own, for what the container sees of it in mountinfo */
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
	int attach;	/* `cgroup.procs` of a cgroup of the container's, where KVM attaches a thread to it; -1: it does not */
	int *cgroups;	/* open `tasks` files of v1 hierarchies */
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
	const char *hostname, *domainname; /* of the container */
	bool small_pages;		   /* no transparent huge pages for QEMU */
	int patience;			   /* how many times longer than usual everybody may take */
	char **qemu;			   /* argv */
};

/* True, or false with `*problem` telling why. */
bool options_parse(struct options *options, int argc, char **argv, const char **problem);
/* Closes every descriptor above 2 that the command line does not name. */
void options_close_others(const struct options *options);

#endif
