/* The framed protocol between CLI, shim and agent: see native/PROTOCOL.md and docs/adr/0001-wire-protocol.md.
 * rundctl/guest/wire.py and rundctl/guest/ops.py say the same in Python; tests/contract compares the two. */
#ifndef RUNDCTL_WIRE_H
#define RUNDCTL_WIRE_H

#include <stdint.h>

enum {
	WIRE_VERSION = 2,
	WIRE_HEADER_SIZE = 16,
	WIRE_PAYLOAD_MAX = 32 * 1024,	    /* bytes of payload in one frame */
	WIRE_MESSAGE_MAX = 8 * 1024 * 1024, /* bytes of a message joined from frames with WIRE_MORE: execve(2) takes up to 6 MiB */
	WIRE_WINDOW = 128 * 1024,	    /* bytes of unacknowledged DATA a stream may have */
	WIRE_ENTROPY_SIZE = 64,		    /* bytes of entropy in an IDENTITY */
	WIRE_FILES_MAX = 64,		    /* names in a READ */
};

#define WIRE_MAGIC "RUND"

/* All integers are little-endian; both ends are x86-64, so the struct is the wire format. */
struct wire_header {
	uint32_t size;	    /* bytes of payload that follow */
	uint8_t type;	    /* enum wire_type */
	uint8_t flags;	    /* WIRE_MORE, WIRE_STREAM_MASK */
	uint16_t container; /* 0: the VM itself, 1: the first container */
	uint32_t process;   /* 0: the container's init, others: exec */
	uint32_t tag;	    /* != 0: a request (or the RESULT of one) */
};
_Static_assert(sizeof(struct wire_header) == WIRE_HEADER_SIZE, "wire header");

enum wire_flag {
	WIRE_STREAM_MASK = 0x03, /* DATA, CREDIT, CLOSE: which stream */
	WIRE_MORE = 0x80,	 /* the message goes on in the next frame of this tag */
};

enum wire_stream { WIRE_STDIN = 0, WIRE_STDOUT = 1, WIRE_STDERR = 2, WIRE_STREAMS = 3 };

enum wire_role { WIRE_ROLE_CLIENT = 1, WIRE_ROLE_SHIM = 2, WIRE_ROLE_AGENT = 3 };

/* Types from 0x80 on may be ignored by a peer that does not know them. */
enum wire_type {
	WIRE_HELLO = 1,	     /* struct wire_hello; first frame in each direction */
	WIRE_RESULT = 2,     /* struct wire_result, then `detail` text (no NUL); answers a request */
	WIRE_IDENTITY = 3,   /* struct wire_identity, then the hostname (no NUL); request to the agent */
	WIRE_SETTLE = 4,     /* empty; request to the agent before a snapshot: flush, drop what a clone need not carry */
	WIRE_PLAN = 5,	     /* struct wire_plan, then operations; request: RESULT comes at WAIT, or with the failure */
	WIRE_START = 6,	     /* empty; request: RESULT comes when the exec is done or has failed */
	WIRE_SIGNAL = 7,     /* struct wire_signal; request or (tag 0) notification */
	WIRE_DATA = 8,	     /* bytes of a stream */
	WIRE_CREDIT = 9,     /* uint32_t: bytes that left the receiver */
	WIRE_CLOSE = 10,     /* empty; end of a stream, see ADR 1 for its two meanings */
	WIRE_EXITED = 11,    /* struct wire_exited; the last frame about a process */
	WIRE_PID = 12,	     /* struct wire_pid; launcher -> creator, tag 0 */
	WIRE_COMMIT = 13,    /* empty; request creator -> shim: from now on the creator may go away */
	WIRE_STOP = 14,	     /* empty; request client -> shim: end the VM now, without asking the guest */
	WIRE_PAUSE = 15,     /* empty; request client -> shim: RESULT when QEMU has stopped the machine */
	WIRE_RESUME = 16,    /* empty; request client -> shim: RESULT when it runs again */
	WIRE_CLOCK = 17,     /* tag 0: struct wire_date, shim -> agent after a RESUME, or if the date was set; request: RESULT has struct wire_clock */
	WIRE_READ = 18,	     /* names of files, each with its NUL; request: RESULT has them, read in the container's cgroup */
	WIRE_PROCESSES = 19, /* uint64_t where to begin, 0 at first; request: RESULT has some of the container's processes */
};

struct wire_hello {
	char magic[4];
	uint16_t version;
	uint16_t role;
};
_Static_assert(sizeof(struct wire_hello) == 8, "hello");

struct wire_result {
	int32_t error;	/* errno, 0 = success */
	uint32_t index; /* operation of the plan that failed, else 0 */
};
_Static_assert(sizeof(struct wire_result) == 8, "result");

/* In the RESULT of a READ, for each name in order; then its `size` bytes. `index` of the RESULT is their number. */
struct wire_file {
	int32_t error; /* errno, 0 = success; EFBIG: there is no room for it in a frame */
	uint32_t size;
};
_Static_assert(sizeof(struct wire_file) == 8, "file");

/* In the RESULT of a PROCESSES; then `index` of the RESULT times three {uint32_t length, bytes}: /proc/PID/stat, the lines Uid and NSpid of
 * its status, the beginning of its cmdline. */
struct wire_processes {
	uint64_t next;	    /* where to begin the next time; 0: that was all */
	uint64_t uptime_ns; /* CLOCK_BOOTTIME of the guest */
};
_Static_assert(sizeof(struct wire_processes) == 16, "processes");

struct wire_date {
	uint64_t realtime_ns; /* CLOCK_REALTIME of the host when sent */
	uint32_t back;	      /* 1: it was set back. Else a guest that is ahead has it late, and goes on */
	uint32_t reserved;
};
_Static_assert(sizeof(struct wire_date) == 16, "date");

/* In the RESULT of a CLOCK. `index` of the RESULT: 1 as long as the guest's kernel still measures its clock, else 0. */
struct wire_clock {
	uint64_t monotonic_ns; /* CLOCK_MONOTONIC of the guest */
	uint64_t cycles;       /* its time stamp counter, read at once after it */
};
_Static_assert(sizeof(struct wire_clock) == 16, "clock");

struct wire_identity {
	uint64_t realtime_ns; /* CLOCK_REALTIME of the host when sent */
	uint8_t entropy[WIRE_ENTROPY_SIZE];
};
_Static_assert(sizeof(struct wire_identity) == 72, "identity");

struct wire_plan {
	uint64_t clone_flags;	     /* CLONE_NEW* for clone3; CLONE_NEWTIME with the offsets below */
	uint32_t operations;	     /* how many follow */
	uint32_t reserved;	     /* 0 */
	int64_t monotonic_offset_ns; /* of the time namespace, 0 without one */
	int64_t boottime_offset_ns;
};
_Static_assert(sizeof(struct wire_plan) == 32, "plan");

struct wire_signal {
	uint32_t signal;
	uint32_t all; /* 1: every process of the container, not just its init */
};
_Static_assert(sizeof(struct wire_signal) == 8, "signal");

struct wire_exited {
	int32_t status; /* as waitpid(2) stores it */
	uint32_t flags; /* enum wire_exited_flag */
};
_Static_assert(sizeof(struct wire_exited) == 8, "exited");

struct wire_pid {
	uint32_t pid;	   /* of the shim, as the host counts */
	uint32_t join_us;  /* how long the launcher took to join the v1 cgroups */
	uint32_t clone_us; /* and to clone, which is how a v2 cgroup is joined */
};
_Static_assert(sizeof(struct wire_pid) == 12, "pid");

enum wire_exited_flag {
	WIRE_EXITED_OOM = 1, /* the guest's kernel has killed a process of the container for want of memory */
};

/* Plan operations: docs/adr/0002-plan-operations.md. An operation is a struct wire_op and then its arguments, each
 * {uint32_t length, bytes, NUL}; an integer argument is 8 bytes. `size` counts the arguments' encoding. */
struct wire_op {
	uint32_t opcode;
	uint32_t arguments;
	uint32_t size;
};
_Static_assert(sizeof(struct wire_op) == 12, "op");

/* Bits of MOUNT's last argument. */
enum wire_mount {
	WIRE_MOUNT_COPY_UP = 1, /* tmpcopyup: the new file system is filled with what the target held */
	WIRE_MOUNT_NO_LINK = 2, /* a target that is a symbolic link, or no directory, is refused */
};

enum wire_opcode {
	OP_MOUNT = 1,	    /* s source, s target, s fstype, u flags, s data, u mode of a directory to make, u enum wire_mount */
	OP_BIND = 2,	    /* s source, s target, u recursive, u kind (0 directory, 1 file) */
	OP_REMOUNT = 3,	    /* s target, u set flags, u clear flags, u recursive */
	OP_PROPAGATION = 4, /* s target, u flags */
	OP_ROOT = 5,	    /* s path */
	OP_MKDIR = 6,	    /* s path, u mode, u uid, u gid */
	OP_MKNOD = 7,	    /* s path, u mode with type, u major, u minor, u uid, u gid */
	OP_SYMLINK = 8,	    /* s path, s text */
	OP_WRITE = 9,	    /* s path, s text */
	OP_HOSTNAME = 10,   /* s name */
	OP_DOMAINNAME = 11, /* s name */
	OP_LINK_UP = 12,    /* s interface */
	/* 13 is kept for terminals */
	OP_PIVOT = 14,		     /* u propagation flags for the new root, 0 = leave */
	OP_MASK = 15,		     /* s path */
	OP_READONLY = 16,	     /* s path */
	OP_RLIMIT = 17,		     /* u resource, u soft, u hard */
	OP_MACHINE_ID = 18,	     /* s path, s text */
	OP_KEYRING = 19,	     /* s name */
	OP_UMASK = 20,		     /* u mask */
	OP_NO_NEW_PRIVS = 21,	     /* */
	OP_STDIO_OWNER = 22,	     /* u uid, u gid */
	OP_BOUNDING = 23,	     /* u mask of the capabilities kept */
	OP_IDS = 24,		     /* u uid, u gid, u gid... additional */
	OP_CAPS = 25,		     /* u effective, u permitted, u inheritable, u ambient */
	OP_SECCOMP = 26,	     /* u SECCOMP_FILTER_FLAG_*, b struct sock_filter[] */
	OP_CHDIR = 27,		     /* s path, u last: 0 = EACCES is forgiven, 1 = done only if it has not succeeded before */
	OP_ENV = 28,		     /* s name=value... */
	OP_HOME = 29,		     /* u uid */
	OP_FIND = 30,		     /* s argv0 */
	OP_WAIT = 31,		     /* */
	OP_EXEC = 32,		     /* s argv... */
	OP_DEVICE_FILTER = 33,	     /* s directory of a cgroup, b struct bpf_insn[] */
	OP_DEVICE_FILTER_READY = 34, /* b struct bpf_insn[] that DEVICE_FILTER will probably ask for */
	OP_STREAMS = 35,	     /* u streams that are /dev/null, a bit each, u 1: stderr is where stdout is */
	OP_LAST = OP_STREAMS,
};

#endif
