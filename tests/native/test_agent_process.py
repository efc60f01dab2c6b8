"""Life of a container's first process under the real agent: exits, signals, failures, leaks."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rundctl.guest import ops, wire

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import ALONE, CLONE_NEWTIME, DEADLINE_S, NAMESPACES, Rig, exit_code, exit_status
from shim_rig import unread, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.mark.parametrize("code", [0, 1, 7, 127, 255])
def test_exit_code(rig, bundle, code):
    status, _, _ = rig.run(bundle.shell(f"exit {code}"))
    assert exit_code(status) == code


def test_output_and_order(rig, bundle):
    status, out, err = rig.run(bundle.shell("echo out; echo err >&2; exit 3"))
    assert (exit_code(status), out, err) == (3, "out\n", "err\n")


def test_init_is_pid_1_with_nothing_inherited(rig, bundle):
    _, out, _ = rig.run(bundle.plan("grep", "-E", "^(Pid|SigBlk|SigIgn|Umask|FDSize)", "/proc/self/status"))
    facts = dict(line.split(":\t") for line in out.splitlines())
    assert (facts["Pid"], facts["Umask"]) == ("1", "0022")
    # glibc 2.36's posix_spawn, with which make starts us, has 32 and 33, which it keeps to itself, ignored.
    assert int(facts["SigBlk"], 16) == int(facts["SigIgn"], 16) & ~(0b11 << 31) == 0
    _, out, _ = rig.run(bundle.plan("ls", "/proc/self/fd"))
    assert out.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
    _, out, _ = rig.run(bundle.plan("sh", "-c", "env", env=("PATH=/bin", "X=y")))
    assert set(out.split()) == {"PATH=/bin", "X=y", "PWD=/", "SHLVL=1"}


def test_signal_ends_it(rig, bundle):
    assert rig.create(bundle.shell("trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.05; done")).error == 0
    assert rig.start().error == 0
    assert rig.frame().payload == b"up\n"
    assert rig.signal(signal.SIGTERM).error == 0
    status, out, _ = rig.finish()
    assert (exit_code(status), out) == (5, "got\n")


def test_sigkill_of_running(rig, bundle):
    rig.create(bundle.plan("sleep", "100"))
    rig.start()
    assert rig.signal(signal.SIGKILL).error == 0
    assert exit_code(rig.finish()[0]) == -signal.SIGKILL


def test_signal_to_all_reaches_children(rig, bundle):
    rig.create(
        bundle.shell(
            "trap 'exit 9' USR1; sh -c \"trap 'echo child; exit' USR1; echo up; while :; do sleep 0.05; done\" & wait; wait"
        )
    )
    rig.start()
    assert rig.frame().payload == b"up\n"
    assert rig.signal(signal.SIGUSR1, everyone=True).error == 0
    status, _, _ = rig.finish()
    assert exit_code(status) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1])
def test_fatal_signal_before_start_is_what_is_reported(rig, bundle, number):
    rig.create(bundle.plan("sleep", "100"))
    assert rig.signal(number).error == 0
    assert exit_code(rig.finish()[0]) == -number
    assert rig.start().error == errno.ESRCH
    assert rig.signal(number).error == errno.ESRCH


def test_harmless_signal_before_start(rig, bundle):
    rig.create(bundle.shell("exit 4"))
    assert rig.signal(signal.SIGWINCH).error == 0
    assert rig.signal(0).error == 0
    assert rig.start().error == 0
    assert exit_code(rig.finish()[0]) == 4


@pytest.mark.parametrize("number", [65, 1000, 0xFFFFFFFF])
def test_impossible_signal(rig, bundle, number):
    rig.create(bundle.plan("true"))
    assert rig.ask(wire.SIGNAL, struct.pack("<II", number, 0), container=1).error == errno.EINVAL


def test_init_killed_from_outside_before_start(rig, bundle):
    rig.create(bundle.plan("sleep", "100"))
    (pid,) = rig.children()
    os.kill(int(pid), signal.SIGKILL)
    assert exit_code(rig.finish()[0]) == -signal.SIGKILL
    assert rig.start().error == errno.ESRCH


def test_a_fifo_of_the_image_does_not_stop_a_plan(rig, bundle):
    os.mkfifo(bundle.root / "etc/passwd")
    os.mkfifo(bundle.root / "etc/machine-id")
    result = rig.create(
        bundle.plan(
            "true",
            after=(ops.machine_id("/etc/machine-id", "x"), ops.env(()), ops.home(0), ops.write("/etc/passwd", "x")),
        )
    )
    assert result.error == errno.ENXIO  # WRITE, to a FIFO that nobody reads; the two before passed it over
    assert rig.children() == []


def test_start_twice_and_unknown(rig, bundle):
    assert rig.start().error == errno.ESRCH
    rig.create(bundle.plan("sleep", "100"))
    assert rig.create(bundle.plan("true")).error == errno.EEXIST
    assert rig.start().error == 0
    assert rig.start().error == errno.EINVAL
    rig.signal(signal.SIGKILL)
    rig.finish()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no program\n", "exec format error"),
        ("", "exec format error"),
        ("#!/bin/nothing\n", "no such file or directory"),
        ("#!/etc\n", "permission denied"),
    ],
)
def test_what_is_no_program_was_started_and_says_so_itself(rig, bundle, text, words):
    """As with runc: its words, on the process' own stderr, and 1."""
    (bundle.root / "bin/text").write_text(text)
    (bundle.root / "bin/text").chmod(0o755)
    status, out, err = rig.run(bundle.plan("text"))
    assert (exit_code(status), out, err) == (1, "", f"exec /bin/text: {words}\n")
    assert rig.start().error == errno.ESRCH


def test_a_hundred_thousand_arguments_and_variables(rig, bundle):
    words, many = ["x"] * 100_000, tuple(f"V{number}=" for number in range(70_000))
    status, out, err = rig.run(bundle.plan("sh", "-c", "echo $#", *words))
    assert (exit_code(status), out, err) == (0, "99999\n", "")
    _, out, _ = rig.run(
        bundle.plan("busybox", "env", env=("PATH=/bin", *many))
    )  # not by a shell, which takes seconds to sort them
    assert out.count("\n") == 70_001


def test_more_than_execve_takes(rig, bundle):
    status, _, err = rig.run(bundle.plan("true", "x" * 200_000))
    assert (exit_code(status), err) == (1, "exec /bin/true: argument list too long\n")


@pytest.mark.parametrize(
    ("argv0", "error", "detail"),
    [
        ("nothing", errno.ENOENT, "executable file not found in $PATH"),
        ("/bin/nothing", errno.ENOENT, "stat /bin/nothing"),
        ("./nothing", errno.ENOENT, "stat ./nothing"),
        ("/etc", errno.EACCES, "is a directory"),
        ("/etc/plain", errno.EACCES, ""),
        ("plain", errno.ENOENT, "executable file not found in $PATH"),
        ("/bin/busybox/x", errno.ENOTDIR, ""),
    ],
)
def test_find_errors(rig, bundle, argv0, error, detail):
    (bundle.root / "etc/plain").write_text("x")
    plan = bundle.plan(argv0, env=("PATH=/etc:/bin",))
    result = rig.create(plan)
    assert (result.error, result.detail, plan.ops[result.index].opcode) == (error, detail, ops.Opcode.FIND)
    assert rig.children() == []


def test_find_relative_to_cwd_and_empty_path_element(rig, bundle):
    (bundle.root / "mnt/here").write_text("#!/bin/sh\necho here\n")
    (bundle.root / "mnt/here").chmod(0o755)
    into = (ops.chdir("/mnt", last=True),)
    assert rig.run(bundle.plan("./here", after=into))[1] == "here\n"
    assert rig.run(bundle.plan("here", after=into, env=("PATH=/none::/bin",)))[1] == "here\n"
    assert rig.create(bundle.plan("here", after=into, env=())).error == errno.ENOENT
    assert rig.create(bundle.plan("here", after=into, env=("PATH=",))).error == errno.ENOENT


def test_failing_operations_name_themselves(rig, bundle):
    failing = [
        (ops.mount("none", "/mnt", "nosuchfs"), errno.ENODEV),
        (ops.mount("tmpfs", "/bin/busybox", "tmpfs"), errno.ENOTDIR),
        (ops.bind("/nowhere", "/mnt"), errno.ENOENT),
        (ops.bind("/etc", "/bin/busybox", is_file=True), errno.ENOTDIR),
        (ops.remount("/mnt", 1), errno.EINVAL),
        (ops.remount("/nowhere", 1), errno.ENOENT),
        (ops.mkdir("/bin/busybox/x"), errno.ENOTDIR),
        (ops.mknod("/bin/busybox", 0o20666, 1, 3), errno.EEXIST),
        (ops.write("/nowhere", "x"), errno.ENOENT),
        (ops.write("/proc/sys/kernel/pid_max", "nonsense"), errno.EINVAL),
        (ops.hostname("x" * 65), errno.EINVAL),
        (ops.link_up("eth99"), errno.ENODEV),
        (ops.rlimit(99, 1, 1), errno.EINVAL),
        (ops.rlimit(7, 20, 10), errno.EINVAL),
        (ops.chdir("/nowhere", last=True), errno.ENOENT),
        (ops.seccomp(0, b"1234567"), errno.EINVAL),
        (ops.seccomp(0, b""), errno.EINVAL),
        (ops.caps(1, 0, 0, 0), errno.EPERM),
    ]
    for operation, error in failing:
        plan = bundle.plan("true", after=(ops.umask(0o22), operation))
        result = rig.create(plan)
        assert (result.error, plan.ops[result.index]) == (error, operation), result.describe()
    assert rig.children() == []


def test_clone_failure_is_answered(rig, bundle):
    user_namespace = 0x10000000
    assert rig.create(bundle.plan("true", flags=NAMESPACES | user_namespace)).error == errno.EPROTO
    assert rig.create(bundle.plan("true", flags=0)).error == errno.EPROTO  # never in the agent's mount namespace
    assert rig.ask(wire.PLAN, bundle.plan("true").encode(), container=1, process=7).error == errno.EOPNOTSUPP


def test_time_namespace_is_only_the_containers(rig, bundle):
    hour = 3600 * 10**9
    parts = {
        "flags": NAMESPACES | CLONE_NEWTIME,
        "monotonic_offset_ns": 1000 * hour,
        "boottime_offset_ns": 1000 * hour - 1,
    }
    _, shifted, _ = rig.run(bundle.plan("cat", "/proc/uptime", **parts))
    _, plain, _ = rig.run(bundle.plan("cat", "/proc/uptime"))
    difference = float(shifted.split()[0]) - float(plain.split()[0])
    assert 3600 * 1000 - 60 < difference < 3600 * 1000 + 60


def test_two_containers_do_not_mix(rig, bundle):
    assert rig.create(bundle.shell("cat; exit 1"), container=1).error == 0
    assert rig.create(bundle.shell("cat; exit 2"), container=2).error == 0
    for container in (1, 2):
        assert rig.start(container).error == 0
    for container in (2, 1):
        rig.data(f"to {container}".encode(), container)
        rig.close_stream(wire.STDIN, container)
    seen, statuses = {1: b"", 2: b""}, {}
    while len(statuses) < 2:
        frame = rig.frame()
        if frame.type == wire.DATA:
            seen[frame.container] += frame.payload
        elif frame.type == wire.EXITED:
            statuses[frame.container] = exit_code(exit_status(frame))
    assert (seen, statuses) == ({1: b"to 1", 2: b"to 2"}, {1: 1, 2: 2})


def settled_descriptors(rig):
    """An answer comes when the container before, whose EXITED may be here already, is let go of."""
    assert rig.signal(0).error == errno.ESRCH
    return rig.descriptors()


def test_many_short_containers_leave_nothing(released, bundle):
    with Rig(released["agent"]) as rig:
        rig.run(bundle.plan("true"))
        before = settled_descriptors(rig)
        for index in range(200):
            if index % 10 == 0:
                assert rig.create(bundle.plan("nothing")).error == errno.ENOENT
            status, out, _ = rig.run(bundle.plan("echo", str(index)))
            assert (exit_code(status), out) == (0, f"{index}\n")
        assert settled_descriptors(rig) == before
        assert rig.children() == []


def test_agents_end_ends_containers(sanitized, bundle):
    rig = Rig(sanitized["agent"])
    rig.create(bundle.plan("sleep", "1000"))
    rig.start()
    (pid,) = rig.children()
    handle = os.pidfd_open(int(pid))
    rig.end()
    assert rig.process.returncode == 0, rig.words
    assert select.select([handle], [], [], DEADLINE_S)[0], "the container outlived its agent"
    os.close(handle)


def test_machine_plan(rig, tmp_path):
    target = tmp_path / "a/b/c"
    (tmp_path / "file").write_text("")
    result = rig.machine(
        ops.mkdir(str(target), 0o2711, 1, 2),
        ops.symlink(str(tmp_path / "link"), "text"),
        ops.write(str(tmp_path / "file"), "words"),
    )
    assert result.error == 0, result.describe()
    status = target.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2711, 1, 2)
    assert target.parent.stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "link").readlink() == Path("text")
    assert (tmp_path / "file").read_text() == "words"
    result = rig.machine(ops.mkdir(str(tmp_path / "x")), ops.write(str(tmp_path / "missing"), ""))
    assert (result.error, result.index) == (errno.ENOENT, 1)


def test_identity_and_settle(faulty, tmp_path):
    """In namespaces of its own, with a file in the place of drop_caches; what it does to the clock and the disks is only told.

    The clock goes back if it is told so. A time that has gone by is a message that came late.
    """
    drop = tmp_path / "drop_caches"
    drop.write_text("")
    script = f'mount --bind {drop} /proc/sys/vm/drop_caches && exec "$@"'
    with Rig(faulty, [*ALONE, "sh", "-c", script, "sh"]) as rig:
        secret = os.urandom(wire.ENTROPY_SIZE)
        result = rig.ask(wire.IDENTITY, struct.pack("<Q", 12_000_000_034) + secret + b"told-apart")
        assert result.error == 0, result.describe()
        (inner,) = rig.children()
        in_namespace = ["nsenter", f"--target={inner}", "--uts", "hostname"]
        assert subprocess.check_output(in_namespace, text=True) == "told-apart\n"
        assert _memory_holds(int(inner), secret[8:56]) is False
        assert rig.ask(wire.IDENTITY, b"short").error == errno.EPROTO
        for realtime_ns, back in ((56_000_000_078, 1), (78_000_000_090, 0), (9_000_000_000_000_000_001, 0)):
            rig.channel.notify(wire.CLOCK, struct.pack("<QII", realtime_ns, back, 0))
        assert rig.ask(wire.SETTLE, container=1).error == errno.EPROTO
        assert rig.ask(wire.SETTLE).error == 0
        assert drop.read_text() == "3"
        rig.channel.hello(wire.ROLE_SHIM)  # a clone's first words
        assert rig.signal(signal.SIGTERM).error == errno.ESRCH
    told = [line for line in rig.words.splitlines() if line.startswith(("clock ", "sync"))]
    assert told == ["clock 0: 12.000000034", "clock 0 moved: 56", "clock 0 moved: 9000000000", "sync"]


def test_what_time_it_is(faulty):
    """The host's own kernel measures nothing any more."""
    with Rig(faulty, ALONE) as rig:
        told = []
        for _ in range(2):
            before_ns = time.monotonic_ns()
            answer = rig.ask(wire.CLOCK)
            now_ns, cycles = struct.unpack("<QQ", answer.data)
            assert (answer.error, answer.index) == (0, 0)
            assert before_ns <= now_ns <= time.monotonic_ns()
            told.append(cycles)
        assert told[0] < told[1]
        assert rig.ask(wire.CLOCK, bytes(8)).error == errno.EPROTO
        assert rig.ask(wire.CLOCK, container=1).error == errno.EPROTO
    assert "clock " not in rig.words, "it was set"


def test_a_machine_whose_timer_is_slow_does_not_settle(faulty):
    with Rig(faulty, [*ALONE, "env", "FAULT=timer"]) as rig:
        result = rig.ask(wire.SETTLE)
        assert (result.error, result.detail) == (errno.ETIME, "sleep for 20 ms, in 50 tries")


def test_entropy_that_comes_in_two_pieces_is_wiped(faulty):
    """Behind another frame: its first piece is moved to the start of the buffer when the second is read."""
    with Rig(faulty, ALONE) as rig:
        secret, tag = os.urandom(wire.ENTROPY_SIZE), 1000
        payload = struct.pack("<Q", 10**18) + secret
        refused = wire.HEADER.pack(0, wire.SETTLE, 0, 1, 0, tag - 1)
        sent = refused + wire.HEADER.pack(len(payload), wire.IDENTITY, 0, 0, 0, tag) + payload
        for piece in (sent[:-8], sent[-8:]):
            rig.socket.sendall(piece)
            wait_for(lambda: unread(rig.socket) == 0)
        assert rig.channel.wait(tag, DEADLINE_S).error == 0
        (inner,) = rig.children()
        moved_by = wire.HEADER.size  # of the frame before: as much of the first piece's end is not overwritten
        assert _memory_holds(int(inner), secret[-8 - moved_by : -8]) is False


def _memory_holds(pid, needle):
    """Whether the writable memory of a process contains the bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/maps", encoding="ascii") as maps:
        for line in maps:
            span, permissions, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if permissions[:2] != "rw" or end - start > 64 * 1024 * 1024:
                continue
            memory.seek(start)
            try:
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False
