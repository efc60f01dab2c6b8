"""What becomes of every field of the runtime specification: the one table behind the checks, ``docs/support.md`` and the tests.

A row is (field, status, words[, harmless values]). A row that is refused or meaningless speaks for all below it. Values that ask for
nothing (false, 0, -1, "", empty, null) are never refused, nor are the harmless ones named in a row.
"""

from __future__ import annotations

HONOURED = "honoured"
REFUSED = "refused"
MEANINGLESS = "meaningless"

_OTHER_SYSTEM = "a section for another operating system; the specification wants it ignored"
_VM = "kernel and hypervisor are chosen by rundctl's own settings for now"
_HOOK_ENV = "; left out, the hook has the environment of rundctl's caller"
_HOOK = "hooks that run in the container's namespaces would have to run inside the VM"
_IDMAP = "idmapped mounts are not supported yet"
_LABEL = "the guest's kernel is the container's own, without this security module; the VM's boundary takes its place"

ROWS: tuple[tuple[str, str, str] | tuple[str, str, str, tuple[object, ...]], ...] = (
    ("ociVersion", "honoured", "any 1.x; other versions are refused"),
    ("annotations", "honoured", "given back by `state`; `io.rundctl.*` are read, unknown ones of these refused"),
    ("hostname", "honoured", ""),
    ("domainname", "honoured", ""),
    ("root", "honoured", ""),
    ("root.path", "honoured", "relative to the bundle"),
    ("root.readonly", "honoured", ""),
    ("process", "honoured", "required"),
    (
        "process.args",
        "honoured",
        "looked up in the container's PATH; if the file is no program, stderr says so and the exit code is 1, as in runc",
    ),
    ("process.commandLine", "meaningless", "for Windows"),
    ("process.consoleSize", "meaningless", "without a terminal there is no console"),
    ("process.cwd", "honoured", "absolute; made if missing"),
    ("process.env", "honoured", "HOME is set from the container's /etc/passwd if missing"),
    (
        "process.terminal",
        "refused",
        "terminals are not supported yet; leave out -t. If the caller's stdio is a terminal, the container gets pipes; runc would hand the terminal on",
    ),
    ("process.user", "honoured", ""),
    ("process.user.uid", "honoured", "up to 2147483647, as in runc"),
    ("process.user.gid", "honoured", "the same"),
    ("process.user.umask", "honoured", "0022 by default"),
    ("process.user.additionalGids", "honoured", ""),
    ("process.user.username", "meaningless", "for Windows"),
    (
        "process.capabilities",
        "honoured",
        "without it the process has none; names the kernel does not know are left out with a warning, as in runc",
    ),
    ("process.capabilities.bounding", "honoured", ""),
    ("process.capabilities.permitted", "honoured", ""),
    ("process.capabilities.effective", "honoured", ""),
    ("process.capabilities.inheritable", "honoured", ""),
    (
        "process.capabilities.ambient",
        "honoured",
        "a capability that is not permitted and inheritable too is listed and left out, as in runc",
    ),
    ("process.apparmorProfile", "meaningless", _LABEL),
    ("process.selinuxLabel", "meaningless", _LABEL),
    ("process.oomScoreAdj", "honoured", "inside the guest"),
    ("process.noNewPrivileges", "honoured", ""),
    ("process.rlimits", "honoured", "those left out are the caller's, as in runc"),
    ("process.rlimits[].type", "honoured", "each at most once"),
    ("process.rlimits[].soft", "honoured", ""),
    ("process.rlimits[].hard", "honoured", ""),
    ("process.ioPriority", "refused", "I/O priorities inside the VM are not supported yet"),
    ("process.scheduler", "refused", "scheduling policies inside the VM are not supported yet"),
    ("process.execCPUAffinity", "refused", "CPU affinity inside the VM is not supported yet"),
    ("mounts", "honoured", "in their order"),
    ("mounts[].destination", "honoured", "a relative one counts from /; into / and into /proc are refused, as in runc"),
    (
        "mounts[].type",
        "honoured",
        "`cgroup` mounts cgroup v2; `overlay` and host block devices are refused; others are passed to the guest's kernel",
    ),
    (
        "mounts[].source",
        "honoured",
        (
            "of a bind mount: a path of the host, relative to the bundle. "
            "A procfs shows no processes; a source below a process is refused (docs/security.md). "
            "Cgroups are the container's. Sockets refuse connections; inotify misses the host's changes"
        ),
    ),
    (
        "mounts[].options",
        "honoured",
        (
            "all names that runc knows; `idmap` and `ridmap` are refused; `ro` is `rro`, unlike runc's; "
            "`shared`, `slave` and the others hold inside the guest: mounts made later pass neither from the host nor to it"
        ),
    ),
    ("mounts[].uidMappings", "refused", _IDMAP),
    ("mounts[].gidMappings", "refused", _IDMAP),
    ("hooks", "honoured", ""),
    *(
        (f"hooks.{hook}{suffix}", "honoured", words + (_HOOK_ENV if suffix == "[].env" else ""))
        for hook, words in (
            ("prestart", "on the host, before the container's process exists; a failure ends `create`"),
            ("createRuntime", "on the host, after prestart; a failure ends `create`"),
            ("poststart", "on the host; a failure ends the container, as in runc"),
            ("poststop", "on the host, also when `create` fails; failures are warnings, and the others run"),
        )
        for suffix in ("", "[].path", "[].args", "[].env", "[].timeout")
    ),
    ("hooks.createContainer", "refused", _HOOK),
    ("hooks.startContainer", "refused", _HOOK),
    ("linux", "honoured", "required"),
    (
        "linux.namespaces",
        "honoured",
        "pid, mount, uts, ipc and network are required: a VM cannot share the host's",
    ),
    (
        "linux.namespaces[].type",
        "honoured",
        "cgroup is always made, time when asked for; user is refused",
    ),
    (
        "linux.namespaces[].path",
        "refused",
        "an existing namespace belongs to the host's kernel, and the container has another; of type network it is refused until there are networks",
    ),
    ("linux.uidMappings", "refused", "user namespaces are not supported yet"),
    ("linux.gidMappings", "refused", "user namespaces are not supported yet"),
    ("linux.timeOffsets", "honoured", "with a time namespace"),
    ("linux.timeOffsets.boottime", "honoured", ""),
    ("linux.timeOffsets.boottime.secs", "honoured", ""),
    ("linux.timeOffsets.boottime.nanosecs", "honoured", ""),
    ("linux.timeOffsets.monotonic", "honoured", ""),
    ("linux.timeOffsets.monotonic.secs", "honoured", ""),
    ("linux.timeOffsets.monotonic.nanosecs", "honoured", ""),
    (
        "linux.devices",
        "honoured",
        (
            "FIFOs and the devices every Linux has: null, zero, full, random, urandom, tty, console, ptmx, fuse, tun; "
            "a host's device is refused; a number that the host has no device for is a node without a driver"
        ),
    ),
    ("linux.devices[].type", "honoured", ""),
    ("linux.devices[].path", "honoured", "a relative one counts from /"),
    ("linux.devices[].major", "honoured", ""),
    ("linux.devices[].minor", "honoured", ""),
    ("linux.devices[].fileMode", "honoured", "0666 by default; 0 is no permission for anybody, as in runc"),
    ("linux.devices[].uid", "honoured", ""),
    ("linux.devices[].gid", "honoured", ""),
    ("linux.cgroupsPath", "honoured", "on the host, for the VM as a whole"),
    ("linux.resources", "honoured", ""),
    (
        "linux.resources.devices",
        "honoured",
        "inside the guest, by an eBPF program on the container's cgroup; as in runc all is denied first, and nodes and the usual devices are allowed last",
    ),
    ("linux.resources.devices[].allow", "honoured", ""),
    ("linux.resources.devices[].type", "honoured", ""),
    ("linux.resources.devices[].major", "honoured", "of the guest's devices"),
    ("linux.resources.devices[].minor", "honoured", ""),
    ("linux.resources.devices[].access", "honoured", ""),
    ("linux.resources.pids", "honoured", ""),
    (
        "linux.resources.pids.limit",
        "honoured",
        "inside the guest; on the host it would count QEMU's threads. Missing, 0 or less is no limit, as in runc",
    ),
    ("linux.resources.memory", "honoured", "as far as its fields are"),
    ("linux.resources.memory.kernel", "meaningless", "obsolete: the guest's cgroup v2 counts kernel memory in `limit`"),
    (
        "linux.resources.memory.kernelTCP",
        "refused",
        "the guest's cgroup v2 counts the memory of TCP in the limit and has no other for it",
    ),
    (
        "linux.resources.memory.limit",
        "honoured",
        "the VM is large enough for it, the guest's cgroup enforces it; the host holds the VM to its memory and an allowance. Below 2 MiB: refused",
    ),
    (
        "linux.resources.memory.reservation",
        "honoured",
        "in the guest `memory.low`; on the host, with what the VM needs beside it, `memory.low` or v1's soft limit",
    ),
    (
        "linux.resources.memory.swap",
        "honoured",
        "on the host, of the VM's pages; the guest has no swap. On v2 `memory.swap.max` is what exceeds `limit`",
    ),
    (
        "linux.resources.memory.swappiness",
        "honoured",
        "on hosts with v1, for the VM; v2 has no such file, as in runc. The guest has no swap",
    ),
    (
        "linux.resources.memory.disableOOMKiller",
        "refused",
        "the limit is kept by the guest's cgroup v2, whose OOM killer cannot be turned off",
    ),
    ("linux.resources.memory.useHierarchy", "meaningless", "the guest has cgroup v2, which always is hierarchical"),
    ("linux.resources.memory.checkBeforeUpdate", "honoured", "by `update`"),
    ("linux.resources.cpu", "honoured", "as far as its fields are"),
    (
        "linux.resources.cpu.quota",
        "honoured",
        "the VM gets enough vCPUs for it (emulated maybe on one thread), and the guest's cgroup enforces it; on the host the VM may use a quarter CPU more",
    ),
    ("linux.resources.cpu.period", "honoured", "in the guest and on the host"),
    ("linux.resources.cpu.burst", "honoured", "in the guest and on the host"),
    ("linux.resources.cpu.cpus", "honoured", "on the host, for all threads of the VM; the guest numbers its own vCPUs"),
    ("linux.resources.cpu.idle", "honoured", "on the host, for the VM"),
    ("linux.resources.cpu.mems", "honoured", "on the host, for the VM"),
    (
        "linux.resources.cpu.realtimePeriod",
        "refused",
        "the container's real-time tasks are the guest's, and its cgroup v2 has no such limit",
    ),
    (
        "linux.resources.cpu.realtimeRuntime",
        "refused",
        "the container's real-time tasks are the guest's, and its cgroup v2 has no such limit",
    ),
    (
        "linux.resources.cpu.shares",
        "honoured",
        "on the host, between VMs, and in the guest; v2's weight by the conversion that runc uses",
    ),
    ("linux.resources.blockIO", "honoured", "on the host: its disks are not the guest's"),
    (
        "linux.resources.blockIO.weight",
        "honoured",
        "on the host, `blkio.weight` or bfq's in v1, bfq's or `io.weight` in v2",
    ),
    ("linux.resources.blockIO.leafWeight", "refused", "the CFQ scheduler, which had it, left Linux with 5.0"),
    ("linux.resources.blockIO.weightDevice", "honoured", "on the host"),
    ("linux.resources.blockIO.weightDevice[].major", "honoured", ""),
    ("linux.resources.blockIO.weightDevice[].minor", "honoured", ""),
    ("linux.resources.blockIO.weightDevice[].weight", "honoured", ""),
    (
        "linux.resources.blockIO.weightDevice[].leafWeight",
        "refused",
        "the CFQ scheduler, which had it, left Linux with 5.0",
    ),
    *(
        (f"linux.resources.blockIO.throttle{kind}Device{suffix}", "honoured", words)
        for kind in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")
        for suffix, words in (("", "on the host"), ("[].major", ""), ("[].minor", ""), ("[].rate", ""))
    ),
    ("linux.resources.hugepageLimits", "honoured", "inside the guest, of huge pages that the container makes there"),
    ("linux.resources.hugepageLimits[].pageSize", "honoured", "2MB; 1GB if the VM's processor has it"),
    ("linux.resources.hugepageLimits[].limit", "honoured", ""),
    (
        "linux.resources.network",
        "refused",
        "network classes and priorities are the host's; the container's network is its own",
    ),
    ("linux.resources.rdma", "refused", "the VM has no RDMA device"),
    (
        "linux.resources.unified",
        "honoured",
        "what a field above sets counts as that field, on v1 too; files of memory, cpu, pids and hugetlb are the guest's, of io and cpuset hosts' with v2",
    ),
    ("linux.rootfsPropagation", "honoured", "inside the guest; sharing mounts with the host is impossible"),
    (
        "linux.seccomp",
        "honoured",
        "compiled on the host, loaded in the guest as the last step: of the set-up a profile must allow execve only, unlike runc's",
    ),
    (
        "linux.seccomp.defaultAction",
        "honoured",
        "SCMP_ACT_NOTIFY is refused: its descriptor would have to leave the VM",
    ),
    ("linux.seccomp.defaultErrnoRet", "honoured", ""),
    (
        "linux.seccomp.flags",
        "honoured",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which needs SCMP_ACT_NOTIFY, is refused",
    ),
    ("linux.seccomp.listenerPath", "refused", "a notify descriptor would have to leave the VM"),
    ("linux.seccomp.listenerMetadata", "refused", "a notify descriptor would have to leave the VM"),
    ("linux.seccomp.architectures", "honoured", ""),
    ("linux.seccomp.syscalls", "honoured", "names that libseccomp does not know are left out, as in runc"),
    ("linux.seccomp.syscalls[].names", "honoured", ""),
    ("linux.seccomp.syscalls[].action", "honoured", "but SCMP_ACT_NOTIFY"),
    ("linux.seccomp.syscalls[].errnoRet", "honoured", ""),
    ("linux.seccomp.syscalls[].args", "honoured", ""),
    ("linux.seccomp.syscalls[].args[].index", "honoured", ""),
    ("linux.seccomp.syscalls[].args[].value", "honoured", ""),
    ("linux.seccomp.syscalls[].args[].valueTwo", "honoured", ""),
    ("linux.seccomp.syscalls[].args[].op", "honoured", ""),
    ("linux.sysctl", "honoured", "those that belong to a namespace, as in runc"),
    ("linux.maskedPaths", "honoured", "relative ones count from /"),
    (
        "linux.readonlyPaths",
        "honoured",
        "with all that is mounted below; of / only the root itself; relative ones count from /",
    ),
    ("linux.mountLabel", "meaningless", _LABEL),
    ("linux.intelRdt", "refused", "cache and bandwidth allocation of the host is not supported yet"),
    ("linux.personality", "honoured", "LINUX, which is the default"),
    ("linux.personality.domain", "refused", "execution domains other than LINUX are not supported yet", ("LINUX",)),
    ("linux.personality.flags", "refused", "the specification defines none"),
    ("vm", "honoured", "as far as its fields are"),
    ("vm.hypervisor", "refused", _VM),
    ("vm.kernel", "refused", _VM),
    ("vm.image", "refused", "the root file system is the bundle's"),
    ("solaris", "meaningless", _OTHER_SYSTEM),
    ("windows", "meaningless", _OTHER_SYSTEM),
    ("zos", "meaningless", _OTHER_SYSTEM),
)

# Fields of specification 1.3, which the vendored schemas do not have yet.
NEWER: tuple[tuple[str, str, str], ...] = (
    ("linux.netDevices", "refused", "network devices of the host are not supported yet"),
    ("linux.memoryPolicy", "refused", "NUMA policies are not supported yet"),
    ("vm.hwConfig", "refused", _VM),
)
