/* Operations that take privileges away: ids, capabilities, seccomp. */
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "plan.h"

enum { CAPABILITIES = 64 }; /* bits of a mask */

int op_no_new_privs(struct plan_context *context, struct plan_arguments *arguments)
{
	(void)context;
	(void)arguments;
	return check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

int op_bounding(struct plan_context *context, struct plan_arguments *arguments)
{
	uint64_t kept = next_number(arguments);

	(void)context;
	for (unsigned cap = 0; cap < CAPABILITIES && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(kept >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			return -errno;
	return 0;
}

static int set_groups(struct plan_arguments *arguments)
{
	size_t count = arguments->count;
	cleanup_free gid_t *groups = calloc(count ? count : 1, sizeof(*groups));

	if (!groups)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		groups[i] = (gid_t)next_number(arguments);
	return check(setgroups(count, groups));
}

int op_ids(struct plan_context *context, struct plan_arguments *arguments)
{
	uid_t uid = (uid_t)next_number(arguments);
	gid_t gid = (gid_t)next_number(arguments);
	int error = check(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));

	(void)context;
	if (!error)
		error = set_groups(arguments);
	if (!error)
		error = check(setresgid(gid, gid, gid));
	return error ? error : check(setresuid(uid, uid, uid));
}

static int set_ambient(uint64_t ambient)
{
	int error = check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));

	for (unsigned cap = 0; !error && cap < CAPABILITIES; cap++)
		if (ambient >> cap & 1)
			error = check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
	return error;
}

int op_caps(struct plan_context *context, struct plan_arguments *arguments)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	uint64_t effective = next_number(arguments);
	uint64_t permitted = next_number(arguments);
	uint64_t inheritable = next_number(arguments);

	(void)context;
	for (unsigned half = 0; half < 2; half++) {
		data[half].effective = (uint32_t)(effective >> (32 * half));
		data[half].permitted = (uint32_t)(permitted >> (32 * half));
		data[half].inheritable = (uint32_t)(inheritable >> (32 * half));
	}
	if (syscall(SYS_capset, &header, data) < 0 || prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0)
		return -errno;
	return set_ambient(next_number(arguments));
}

/* Kept for EXEC, which loads it last: so a profile need allow nothing of what set-up does. */
int op_seccomp(struct plan_context *context, struct plan_arguments *arguments)
{
	unsigned flags = (unsigned)next_number(arguments);
	struct plan_bytes bpf = next_bytes(arguments);
	size_t length = bpf.length / sizeof(struct sock_filter);

	if (context->filter.len || length == 0 || bpf.length % sizeof(struct sock_filter) || length > BPF_MAXINSNS)
		return -EINVAL;
	/* The plan is a byte stream: the kernel takes the instructions at any address, the compiler does not. */
	context->filter.filter = malloc(bpf.length);
	if (!context->filter.filter)
		return -ENOMEM;
	memcpy(context->filter.filter, bpf.data, bpf.length);
	context->filter.len = (unsigned short)length;
	context->filter_flags = flags;
	return 0;
}

/* CAP_SYS_ADMIN, without which or no_new_privs no filter is loaded, becomes effective if CAPS left it permitted. The exec takes it away: it computes the new
 * sets from the inheritable, bounding and ambient ones alone (capabilities(7)). */
static int raise_sys_admin(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	data[0].effective |= data[0].permitted & 1U << CAP_SYS_ADMIN;
	return check(syscall(SYS_capset, &header, data));
}

int load_filter(struct plan_context *context)
{
	if (!context->filter.len)
		return 0;
	int error = raise_sys_admin();
	if (!error)
		error = check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, context->filter_flags, &context->filter));
	if (error)
		snprintf(context->detail, sizeof(context->detail), "load the seccomp filter");
	return error;
}
