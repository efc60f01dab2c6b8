"""The plan compiler: order, values, refusals; pure, and never anything but a plan or a ConfigError."""

from __future__ import annotations

import builtins
import copy
import os
import socket
import stat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rundctl.engine.plan import compiler
from rundctl.engine.plan.mounts import Volume
from rundctl.errors import ConfigError
from rundctl.guest.ops import Opcode
from rundctl.lean import os as lean_os
from rundctl.oci import linux, validate
from rundctl.oci.bundle import Bundle

from .plan_rig import BPF, config_of, ops_of, plan_of, recorded, refusal_of


@pytest.mark.parametrize("name", ["podman-basic", "podman-volumes"])
def test_what_podman_records_compiles(name: str) -> None:
    config, facts = recorded(name)
    validate.validate(config)
    compiled = plan_of(config, **facts)
    assert compiled.encode()
    assert compiled.warnings == compiled.ignored == []


def test_podman_limits() -> None:
    config, facts = recorded("podman-limits")
    config["linux"]["resources"]["cpu"]["realtimeRuntime"] = 512
    assert refusal_of(config, **facts).startswith("config.json: linux.resources.cpu.realtimeRuntime: not supported")
    config["linux"]["resources"]["cpu"]["realtimeRuntime"] = 0
    compiled = plan_of(config, **facts)
    written = {op.arguments[0] for op in compiled.ops if op.opcode is Opcode.WRITE}
    assert {f"/sys/fs/cgroup/c1/{name}" for name in ("memory.max", "cpu.max", "pids.max")} <= written
    fuse = next(op for op in compiled.ops if op.opcode is Opcode.MKNOD and op.arguments[0] == "/dev/fuse")
    assert fuse.arguments == ("/dev/fuse", stat.S_IFCHR | 0o600, 10, 229, 0, 0)  # podman's mode carries other type bits


def test_order() -> None:
    config = config_of(
        process={"oomScoreAdj": 5, "noNewPrivileges": False},
        linux={
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "resources": {"pids": {"limit": 9}},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        },
        domainname="d",
    )
    compiled = plan_of(config, machine_id="1" * 32, keyring="_ses.x")
    names = [op.opcode.name for op in compiled.ops]
    expected = [
        "PROPAGATION",
        "LINK_UP",
        "WRITE",
        "WRITE",
        "MOUNT",
        "DEVICE_FILTER",
        "ROOT",
        "MOUNT",
        "MKNOD",
        "SYMLINK",
        "HOSTNAME",
        "DOMAINNAME",
        "PIVOT",
        "MACHINE_ID",
        "MKDIR",
        "WRITE",
        "REMOUNT",
        "READONLY",
        "MASK",
        "KEYRING",
        "RLIMIT",
        "UMASK",
        "STDIO_OWNER",
        "BOUNDING",
        "CHDIR",
        "IDS",
        "CAPS",
        "CHDIR",
        "ENV",
        "HOME",
        "FIND",
        "SECCOMP",
        "WAIT",
        "EXEC",
    ]
    assert [name for index, name in enumerate(names) if index < 4 or name != names[index - 1]] == expected


@pytest.mark.parametrize("confined", [False, True])
def test_seccomp_comes_last_and_its_privilege_is_permitted_only(confined: bool) -> None:
    config = config_of(
        process={"noNewPrivileges": confined},
        linux={"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}},
    )
    *before, filter_op, wait, execute = plan_of(config).ops
    assert [op.opcode for op in (filter_op, wait, execute)] == [Opcode.SECCOMP, Opcode.WAIT, Opcode.EXEC]
    assert filter_op.arguments == (2, BPF)
    del config["linux"]["seccomp"]
    with_filter, without = (
        next(op.arguments for op in some if op.opcode is Opcode.CAPS) for some in (before, plan_of(config).ops)
    )
    sys_admin = 0 if confined else 1 << 21
    assert with_filter == (without[0], without[1] | sys_admin, *without[2:])
    assert not without[1] & 1 << 21


def test_seccomp_that_was_not_compiled() -> None:
    config = config_of(linux={"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}})
    with pytest.raises(ConfigError, match="no filter was compiled"):
        compiler.compile(Bundle("/b", config, "/b/rootfs"), compiler.Facts(rootfs_ops=()))


def test_clone_flags_and_time() -> None:
    flags = (
        linux.CLONE_NEWPID,
        linux.CLONE_NEWNS,
        linux.CLONE_NEWUTS,
        linux.CLONE_NEWIPC,
        linux.CLONE_NEWNET,
        linux.CLONE_NEWCGROUP,
    )
    assert plan_of(config_of()).clone_flags == sum(flags)
    namespaces = [*config_of()["linux"]["namespaces"], {"type": "time"}]
    offsets = {"monotonic": {"secs": -2, "nanosecs": 5}, "boottime": {"secs": 3}}
    compiled = plan_of(config_of(linux={"namespaces": namespaces, "timeOffsets": offsets}))
    assert compiled.clone_flags == sum(flags) | linux.CLONE_NEWTIME
    assert (compiled.monotonic_offset_ns, compiled.boottime_offset_ns) == (-1_999_999_995, 3_000_000_000)
    assert "timeOffsets: needs a time namespace" in refusal_of(config_of(linux={"timeOffsets": offsets}))
    offsets["boottime"]["secs"] = 1 << 62
    assert "timeOffsets.boottime: out of range" in refusal_of(
        config_of(linux={"namespaces": namespaces, "timeOffsets": offsets})
    )


@pytest.mark.parametrize("kind", linux.REQUIRED_NAMESPACES)
def test_namespaces_of_the_host_are_refused(kind: str) -> None:
    others = [entry for entry in config_of()["linux"]["namespaces"] if entry["type"] != kind]
    assert f"linux.namespaces: not supported: the container has no {kind} namespace" in refusal_of(
        config_of(linux={"namespaces": others})
    )
    joined = [*others, {"type": kind, "path": "/proc/1/ns/x"}]
    said = refusal_of(config_of(linux={"namespaces": joined}))
    assert f"linux.namespaces[{len(others)}].path: not supported" in said
    assert ("no networks" in said) == (kind == "network")


@pytest.mark.parametrize(
    ("kind", "words"), [("user", "not supported"), ("pid", "given twice"), ("shoe", "unknown namespace")]
)
def test_other_namespaces(kind: str, words: str) -> None:
    assert words in refusal_of(config_of(linux={"namespaces": [*config_of()["linux"]["namespaces"], {"type": kind}]}))


def test_process() -> None:
    user = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o077}
    config = config_of(process={"user": user, "cwd": "/a/../b/", "env": ["A=1", "B=2", "A=3"], "args": ["x", "y"]})
    assert ops_of(config, Opcode.IDS)[0].arguments == (7, 8, 9, 10)
    assert ops_of(config, Opcode.UMASK)[0].arguments == (0o077,)
    assert ops_of(config, Opcode.STDIO_OWNER)[0].arguments == (7, 8)
    assert [op.arguments for op in ops_of(config, Opcode.CHDIR)] == [("/b", 0), ("/b", 1)]
    assert ops_of(config, Opcode.ENV)[0].arguments == ("A=3", "B=2")
    assert ops_of(config, Opcode.EXEC)[0].arguments == ("x", "y")
    assert ops_of(config, Opcode.FIND)[0].arguments == ("x",)
    assert ops_of(config, Opcode.HOME)[0].arguments == (7,)
    assert ops_of(config_of(), Opcode.UMASK)[0].arguments == (0o022,)


def test_capabilities() -> None:
    sets = {"bounding": ["CAP_CHOWN", "CAP_NEW"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_CHOWN", "CAP_KILL"]}  # fmt: skip
    compiled = plan_of(config_of(process={"capabilities": sets}))
    by_code = {op.opcode: op.arguments for op in compiled.ops}
    assert by_code[Opcode.BOUNDING] == (1,)
    assert by_code[Opcode.CAPS] == (1 << 5, 1 | 1 << 5, 1 << 5, 1 << 5)
    assert compiled.warnings == ["process.capabilities: ignored: unknown capability 'CAP_NEW'"]
    assert "process.capabilities.ambient: ignored: CAP_CHOWN: not both permitted and inheritable" in compiled.ignored
    config = config_of()
    del config["process"]["capabilities"]
    assert ops_of(config, Opcode.CAPS)[0].arguments == (0, 0, 0, 0)


def test_capability_numbers() -> None:
    assert {name: linux.CAPABILITIES[name] for name in ("CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_SETFCAP", "CAP_CHECKPOINT_RESTORE")} == {
        "CAP_CHOWN": 0, "CAP_SYS_ADMIN": 21, "CAP_SETFCAP": 31, "CAP_CHECKPOINT_RESTORE": 40,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ({"cwd": "x"}, "process.cwd: expected an absolute path"),
        ({"env": ["A"]}, "process.env[0]: expected NAME=VALUE"),
        ({"env": ["=A"]}, "process.env[0]: expected NAME=VALUE"),
        ({"oomScoreAdj": 1001}, "process.oomScoreAdj"),
        ({"rlimits": [{"type": "RLIMIT_X", "soft": 0, "hard": 0}]}, "process.rlimits[0].type: unknown limit"),
        ({"rlimits": [{"type": "RLIMIT_AS", "soft": 2, "hard": 1}]}, "process.rlimits[0].soft"),
        (
            {"rlimits": [{"type": "RLIMIT_AS", "soft": 1, "hard": 1}] * 2},
            "process.rlimits[1].type: RLIMIT_AS is given twice",
        ),
        ({"args": ["a\0b"]}, "a string holds a NUL"),
        ({"args": ["\ud800"]}, "a string holds a NUL or no character"),
        ({"terminal": True}, "process.terminal: not supported"),
    ],
)
def test_wrong_processes(process: dict[str, Any], words: str) -> None:
    assert words in refusal_of(config_of(process=process))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shmmax", "kernel/shmmax"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("kernel.domainname", "kernel/domainname"),
    ],
)
def test_sysctls(key: str, path: str) -> None:
    assert ops_of(config_of(linux={"sysctl": {key: "1"}}), Opcode.WRITE)[-1].arguments == (f"/proc/sys/{path}", "1")


@pytest.mark.parametrize(
    "key",
    ["kernel.hostname", "vm.swappiness", "kernel.panic", "net/../vm/swappiness", "net..x", "", "net", "kernel.sem.x"],
)
def test_other_sysctls(key: str) -> None:
    assert refusal_of(config_of(linux={"sysctl": {key: "1"}})).startswith(f"config.json: linux.sysctl: {key!r}: ")


def test_devices() -> None:
    fifo = {"path": "/run/f", "type": "p", "fileMode": 0o600, "uid": 1, "gid": 2, "major": 9}
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}
    nodes = {
        op.arguments[0]: op.arguments[1:] for op in ops_of(config_of(linux={"devices": [fifo, null]}), Opcode.MKNOD)
    }
    assert nodes["/run/f"] == (stat.S_IFIFO | 0o600, 0, 0, 1, 2)
    assert nodes["/dev/null"] == (stat.S_IFCHR | 0o600, 1, 3, 0, 0)
    assert nodes["/dev/zero"] == (stat.S_IFCHR | 0o666, 1, 5, 0, 0)
    assert {"/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"} < set(nodes)
    links = {op.arguments for op in ops_of(config_of(), Opcode.SYMLINK)}
    assert {("/dev/fd", "/proc/self/fd"), ("/dev/ptmx", "pts/ptmx"), ("/dev/stdin", "/proc/self/fd/0")} < links
    bound = [*config_of()["mounts"], {"destination": "/dev", "type": "bind", "source": "/dev"}]
    assert not ops_of(config_of(mounts=bound), Opcode.MKNOD, volumes={len(bound) - 1: Volume("/volumes/0")})


def test_names_and_paths() -> None:
    config = config_of(
        hostname="", linux={"maskedPaths": ["/m"], "readonlyPaths": ["/r"], "rootfsPropagation": "rshared"}
    )
    assert ops_of(config, Opcode.HOSTNAME, hostname="other")[0].arguments == ("other",)
    assert ops_of(config_of(), Opcode.HOSTNAME, hostname="other")[0].arguments == ("rundctl",)
    assert ops_of(config, Opcode.MASK)[0].arguments == ("/m",)
    assert ops_of(config, Opcode.READONLY)[0].arguments == ("/r",)
    propagations = [op.arguments for op in ops_of(config, Opcode.PROPAGATION)]
    assert propagations[-1] == ("/", linux.MS_SHARED | linux.MS_REC)
    assert ("/", linux.MS_RDONLY, 0, 0) in {op.arguments for op in ops_of(config, Opcode.REMOUNT)}
    assert ("/", linux.MS_RDONLY, 0, 0) not in {
        op.arguments for op in ops_of(config_of(root={"readonly": False}), Opcode.REMOUNT)
    }
    assert ops_of(config_of(linux={"maskedPaths": ["m"]}), Opcode.MASK)[0].arguments == ("/m",)
    assert ops_of(config_of(linux={"readonlyPaths": ["r/"]}), Opcode.READONLY)[0].arguments == ("/r/",)


@pytest.mark.parametrize("field", ["hostname", "domainname"])
def test_names_are_bounded_as_the_kernel_has_them(field: str) -> None:
    assert ops_of(config_of(**{field: "ü" * 32}), Opcode[field.upper()])[0].arguments == ("ü" * 32,)
    assert f"{field}: longer than 64 bytes" in refusal_of(config_of(**{field: "ü" * 32 + "x"}))
    assert f"{field}: not text" in refusal_of(config_of(**{field: "\udead"}))


def test_the_callers_streams() -> None:
    assert ops_of(config_of(), Opcode.STREAMS) == []
    assert ops_of(config_of(), Opcode.STREAMS, nulls=1, joined=True)[0].arguments == (1, 1)
    operations = [op.opcode for op in plan_of(config_of(), nulls=4).ops]
    assert operations.index(Opcode.PIVOT) < operations.index(Opcode.STREAMS) < operations.index(Opcode.STDIO_OWNER)


def test_pids_limit() -> None:
    limited = config_of(linux={"resources": {"pids": {"limit": 10}}})
    assert ("/sys/fs/cgroup/c1/pids.max", "10") in {op.arguments for op in ops_of(limited, Opcode.WRITE)}
    for none in (0, -1):
        assert not ops_of(config_of(linux={"resources": {"pids": {"limit": none}}}), Opcode.WRITE)


def test_purity(monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = recorded("podman-basic")
    before = copy.deepcopy(config)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the compiler touches the world")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", forbidden)
        patch.setattr(socket, "socket", forbidden)
        for name in ("open", "stat", "lstat", "listdir", "readlink", "posix_spawn", "getrandom"):
            patch.setattr(os, name, forbidden)
            patch.setattr(lean_os, name, forbidden)
        first = plan_of(config, **facts)
        second = plan_of(config, **facts)
    assert first.encode() == second.encode()
    assert config == before


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


TEXT = st.text(max_size=12) | st.sampled_from(
    ["/", "..", "/proc", "bind", "rro", "shared", "\0", "CAP_KILL", "RLIMIT_AS", "time"]
)
VALUES = st.recursive(
    TEXT | st.integers(-(2**64), 2**64) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400)
@given(st.data())
def test_any_valid_config_compiles_or_is_refused(data: st.DataObject) -> None:
    config, facts = recorded("podman-volumes")
    config["linux"]["seccomp"].pop("syscalls")
    config["linux"]["timeOffsets"] = {"monotonic": {"secs": 0}}
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_places(config)[1:]))
        holder = config
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = data.draw(VALUES)
    try:
        validate.validate(config)
        encoded = plan_of(config, **facts).encode()
    except ConfigError as error:
        refusal = error.message
        encoded = b""
    else:
        refusal = ""
    assert encoded or refusal.startswith("config.json: ")
