/* The devices that a container may use: in cgroup v2 an eBPF program decides, which is compiled on the host. */
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "path.h"
#include "plan.h"

/* A descriptor, or -errno. */
static int load_program(const struct bpf_insn *code, size_t count)
{
	static const char license[] = "Apache-2.0";
	union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE};

	attributes.insns = (uintptr_t)code;
	attributes.insn_cnt = (uint32_t)count;
	attributes.license = (uintptr_t)license;
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
	return fd < 0 ? -errno : fd;
}

/* Those that are attached above or beside it are asked as well: all must agree. */
static int attach_program(int program, int cgroup)
{
	union bpf_attr attributes = {.attach_type = BPF_CGROUP_DEVICE};

	attributes.target_fd = (uint32_t)cgroup;
	attributes.attach_bpf_fd = (uint32_t)program;
	attributes.attach_flags = BPF_F_ALLOW_MULTI;
	return check(syscall(SYS_bpf, BPF_PROG_ATTACH, &attributes, sizeof attributes));
}

int op_device_filter(struct plan_context *context, struct plan_arguments *arguments)
{
	cleanup_close int cgroup = path_open(context, next_string(arguments), O_RDONLY | O_DIRECTORY);
	struct plan_bytes code = next_bytes(arguments);
	/* The plan is a byte stream: instructions are read at their own alignment. */
	cleanup_free struct bpf_insn *copy = malloc(code.length ? code.length : 1);

	if (cgroup < 0)
		return cgroup;
	if (code.length == 0 || code.length % sizeof *copy)
		return -EINVAL;
	if (!copy)
		return -ENOMEM;
	memcpy(copy, code.data, code.length);
	cleanup_close int program = load_program(copy, code.length / sizeof *copy);
	int error = program < 0 ? program : attach_program(program, cgroup);
	if (error == -EINVAL || error == -ENOSYS)
		snprintf(context->detail, sizeof context->detail, "does the guest's kernel have CONFIG_CGROUP_BPF?");
	return error;
}
