/* The devices that a container may use: in cgroup v2 an eBPF program decides, which is compiled on the host. */
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "path.h"
#include "plan.h"

/* Loaded before the snapshot: what nearly every plan will ask for. An emulated guest's verifier takes longer for it than the
 * rest of a plan does. The descriptor keeps the program; a child, which has none of the agent's, finds it by its number. */
static struct {
	struct bpf_insn *code; /* NULL: there is none */
	size_t size;
	uint32_t id;
	int program;
} ready = {.program = -1};

/* A descriptor, or -errno. */
static int load_program(const struct bpf_insn *code, size_t count)
{
	static const char license[] = "Apache-2.0";
	union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE};

	attributes.insns = (uintptr_t)code;
	attributes.insn_cnt = (uint32_t)count;
	attributes.license = (uintptr_t)license;
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof(attributes));
	return fd < 0 ? -errno : fd;
}

/* Those that are attached above or beside it are asked as well: all must agree. */
static int attach_program(int program, int cgroup)
{
	union bpf_attr attributes = {.attach_type = BPF_CGROUP_DEVICE};

	attributes.target_fd = (uint32_t)cgroup;
	attributes.attach_bpf_fd = (uint32_t)program;
	attributes.attach_flags = BPF_F_ALLOW_MULTI;
	return check(syscall(SYS_bpf, BPF_PROG_ATTACH, &attributes, sizeof(attributes)));
}

/* A descriptor of the ready program, if it is the same; else -errno. */
static int open_ready(const struct bpf_insn *code, size_t size)
{
	union bpf_attr attributes = {.prog_id = ready.id};

	if (!ready.code || size != ready.size || memcmp(code, ready.code, size) != 0)
		return -ENOENT;
	int fd = (int)syscall(SYS_bpf, BPF_PROG_GET_FD_BY_ID, &attributes, sizeof(attributes));
	return fd < 0 ? -errno : fd;
}

/* The program's number for BPF_PROG_GET_FD_BY_ID; 0 if the kernel does not say it. */
static uint32_t program_id(int program)
{
	struct bpf_prog_info info = {0};
	union bpf_attr attributes = {0};

	attributes.info.bpf_fd = (uint32_t)program;
	attributes.info.info_len = sizeof(info);
	attributes.info.info = (uintptr_t)&info;
	return syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attributes, sizeof(attributes)) < 0 ? 0 : info.id;
}

/* The plan is a byte stream: instructions are read at their own alignment. 0 or -errno. */
static int copy_code(struct plan_bytes code, struct bpf_insn **copy)
{
	if (code.length == 0 || code.length % sizeof(**copy))
		return -EINVAL;
	*copy = malloc(code.length);
	if (!*copy)
		return -ENOMEM;
	memcpy(*copy, code.data, code.length);
	return 0;
}

int op_device_filter(struct plan_context *context, struct plan_arguments *arguments)
{
	cleanup_close int cgroup = path_open(context, next_string(arguments), O_RDONLY | O_DIRECTORY);
	struct plan_bytes code = next_bytes(arguments);
	cleanup_free struct bpf_insn *copy = NULL;
	int error = cgroup < 0 ? cgroup : copy_code(code, &copy);

	if (error)
		return error;
	cleanup_close int program = open_ready(copy, code.length);
	if (program < 0)
		program = load_program(copy, code.length / sizeof(*copy));
	error = program < 0 ? program : attach_program(program, cgroup);
	if (error == -EINVAL || error == -ENOSYS)
		snprintf(context->detail, sizeof(context->detail), "does the guest's kernel have CONFIG_CGROUP_BPF?");
	return error;
}

int op_device_filter_ready(struct plan_context *context, struct plan_arguments *arguments)
{
	struct plan_bytes code = next_bytes(arguments);
	cleanup_free struct bpf_insn *copy = NULL;
	int error = copy_code(code, &copy);

	(void)context;
	if (error)
		return error;
	cleanup_close int program = load_program(copy, code.length / sizeof(*copy));
	uint32_t id = program < 0 ? 0 : program_id(program);
	if (!id)
		return 0; /* what goes wrong here goes wrong in the container's plan again, and is reported then */
	close_fd(&ready.program);
	free(ready.code);
	ready.code = copy;
	ready.size = code.length;
	ready.id = id;
	ready.program = take_fd(&program);
	copy = NULL;
	return 0;
}
