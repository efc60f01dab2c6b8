/* The executor of container plans: docs/adr/0002-plan-operations.md. */
#ifndef RUNDCTL_AGENT_PLAN_H
#define RUNDCTL_AGENT_PLAN_H

#include <errno.h>
#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arguments.h"
#include "wire.h"

enum { PLAN_DETAIL_SIZE = 192 };

/* What the operations of one plan share. Lives in the child (or in the agent, for the VM's own plan). */
struct plan_context {
	int root;		       /* O_PATH of the container's root; -1 before ROOT: the guest's own paths */
	int null_mount;		       /* mount of the guest's /dev/null for MASK, -1 until it is needed */
	bool null_placed;	       /* null_mount is somewhere in the tree: clone it, do not move it */
	bool umask_chosen;	       /* UMASK was there */
	bool directory_entered;	       /* CHDIR has succeeded */
	int status;		       /* pipe to the agent; -1 in the VM's own plan */
	struct status_record *words;   /* memory shared with the agent; NULL in the VM's own plan */
	int start;		       /* pipe from the agent: one byte is START */
	char **environment;	       /* what ENV and HOME made, NULL-terminated */
	char *executable;	       /* what FIND kept */
	bool no_program;	       /* execve has failed, after all else went well */
	char **argv;		       /* what EXEC made; freed by its end alone: free(3) may make system calls */
	struct sock_fprog filter;      /* what SECCOMP kept; .len 0: none */
	unsigned filter_flags;	       /* SECCOMP_FILTER_FLAG_* */
	char detail[PLAN_DETAIL_SIZE]; /* words for the failure, may be empty */
};

/* How an operation or a whole plan ended. */
struct plan_failure {
	int error;	/* errno, 0 = success */
	uint32_t index; /* operation that failed */
};

enum plan_kind {
	PLAN_OF_MACHINE,   /* container 0: runs in the agent */
	PLAN_OF_CONTAINER, /* runs in the container's first process; has WAIT and ends with EXEC */
};

/* What the child says: READY and SPARE through its status pipe, in one write, so it is never torn (PIPE_BUF). FAILED is left in memory that it shares with
 * the agent, as is NO_PROGRAM, when only the execve failed, and the pipe's end says when to look: the last thing before EXEC is the container's seccomp filter,
 * which may deny write(2). */
enum status_kind { STATUS_READY = 1, STATUS_FAILED = 2, STATUS_SPARE = 3, STATUS_NO_PROGRAM = 4 };

struct status_record {
	uint32_t kind;
	int32_t error;
	uint32_t index;
	uint32_t joined; /* STREAMS has made stderr the same pipe as stdout */
	char detail[PLAN_DETAIL_SIZE];
};

/* Whether `size` bytes are a well-formed plan of that kind: EPROTO and the operation if not. */
struct plan_failure plan_check(const uint8_t *plan, size_t size, enum plan_kind kind);
/* The head of a checked plan: namespaces and time offsets. */
struct wire_plan plan_head(const uint8_t *plan);
/* Runs a checked plan; returns at the first failure, or at its end (which EXEC never reaches). */
struct plan_failure plan_run(struct plan_context *context, const uint8_t *plan);
void plan_context_init(struct plan_context *context);
void plan_context_release(struct plan_context *context);

/* 0, or -errno of the call that has just returned `result`. */
static inline int check(long result)
{
	return result < 0 ? -errno : 0;
}

/* An operation: 0 or -errno, with words in context->detail where the errno alone would not do. */
typedef int plan_operation(struct plan_context *context, struct plan_arguments *arguments);

plan_operation op_mount, op_bind, op_remount, op_propagation, op_root, op_pivot;	/* ops_mount.c */
plan_operation op_mask, op_readonly;							/* ops_hide.c */
plan_operation op_mkdir, op_mknod, op_symlink, op_write, op_machine_id;			/* ops_files.c */
plan_operation op_hostname, op_domainname, op_link_up, op_rlimit, op_keyring, op_umask; /* ops_system.c */
plan_operation op_no_new_privs, op_bounding, op_ids, op_caps, op_seccomp;		/* ops_user.c */
plan_operation op_streams, op_stdio_owner;						/* ops_stdio.c */
plan_operation op_device_filter, op_device_filter_ready;				/* ops_devices.c */
plan_operation op_chdir, op_env, op_home, op_find, op_wait, op_exec;			/* ops_exec.c */

/* ops_user.c: loads what SECCOMP kept, if anything. Whoever returns from this may do nothing but exec, whatever the filter denies. */
int load_filter(struct plan_context *context);

/* ops_system.c: sets IFF_UP; 0 or -errno. */
int link_up(const char *name);
/* ops_copy.c: fills the directory `to` with what the directory `from` holds. */
int copy_up(int from, int to);

#endif
