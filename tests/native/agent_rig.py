"""The real agent at the end of a socketpair, on this host, with plans that never leave namespaces of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path

from rundctl.guest import ops, wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
BUSYBOX = Path("/usr/bin/busybox")
ENVIRONMENT = {
    "ASAN_OPTIONS": "abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "PATH": "/usr/bin:/bin",
}

MS_REC, MS_PRIVATE = 0x4000, 1 << 18
CLONE_NEWTIME = 0x80
# mount, uts, ipc, pid, net
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
ALONE = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"]


class Rig:
    """An agent and the conversation with it. Use as a context: the agent must end well, sanitizers included."""

    def __init__(self, program, wrapper=()):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [*wrapper, str(program), "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.socket = ours
        self.channel = wire.Channel(ours)
        self.channel.hello(wire.ROLE_SHIM)
        self.words = ""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.end()
        if kind is None:
            assert self.process.returncode == 0, self.words

    def end(self):
        self.socket.close()
        try:
            _, words = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, words = self.process.communicate()
        self.words = words.decode(errors="replace")

    def ask(self, kind, payload=b"", *, container=0, process=0):
        return self.channel.wait(self.channel.post(kind, payload, container=container, process=process), DEADLINE_S)

    def machine(self, *operations):
        return self.ask(wire.PLAN, ops.Plan(0, operations).encode())

    def create(self, plan, container=1):
        return self.ask(wire.PLAN, plan.encode(), container=container)

    def start(self, container=1):
        return self.ask(wire.START, container=container)

    def signal(self, number, *, everyone=False, container=1):
        return self.ask(wire.SIGNAL, struct.pack("<II", number, everyone), container=container)

    def data(self, payload, container=1):
        self.channel.notify(wire.DATA, payload, container=container, flags=wire.STDIN)

    def credit(self, stream, size, container=1):
        self.channel.notify(wire.CREDIT, struct.pack("<I", size), container=container, flags=stream)

    def close_stream(self, stream, container=1):
        self.channel.notify(wire.CLOSE, container=container, flags=stream)

    def frame(self):
        return self.channel.next_frame(DEADLINE_S)

    def finish(self):
        """Read to EXITED, returning credit: the wait status, stdout and stderr."""
        output = {wire.STDOUT: b"", wire.STDERR: b""}
        while True:
            frame = self.frame()
            stream = frame.flags & wire.STREAM_MASK
            if frame.type == wire.DATA:
                output[stream] += frame.payload
                self.credit(stream, len(frame.payload), frame.container)
            elif frame.type == wire.EXITED:
                return exit_status(frame), output[wire.STDOUT].decode(), output[wire.STDERR].decode()

    def run(self, plan):
        """Create, start and finish; the plan has to succeed."""
        created = self.create(plan)
        assert created.error == 0, (created.index, created.describe(), plan.describe()[created.index])
        started = self.start()
        assert started.error == 0, started.describe()
        return self.finish()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self):
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()


def exit_status(frame):
    """The wait status in an EXITED."""
    return int(struct.unpack("<iI", frame.payload)[0])


def exit_code(status):
    """As a shell says it."""
    return os.waitstatus_to_exitcode(status)


class Bundle:
    """A rootfs of busybox, and plans for it."""

    def __init__(self, directory):
        self.root = Path(directory) / "rootfs"
        for name in ("bin", "proc", "dev", "etc", "tmp", "mnt"):
            (self.root / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.root / "bin/busybox")
        for applet in (
            "sh",
            "cat",
            "sleep",
            "true",
            "id",
            "ls",
            "mkdir",
            "mount",
            "kill",
            "head",
            "wc",
            "grep",
            "echo",
            "setsid",
            "seq",
            "touch",
            "stat",
            "sha256sum",
            "readlink",
            "dd",
        ):
            (self.root / "bin" / applet).symlink_to("busybox")

    def before_pivot(self, *more):
        """The operations every plan begins with: nothing done in there reaches the host."""
        root = str(self.root)
        return (
            ops.propagation("/", MS_REC | MS_PRIVATE),
            ops.bind(root, root),
            ops.root(root),
            ops.mount("proc", "/proc", "proc"),
            ops.mount("tmpfs", "/dev", "tmpfs", 0, "mode=0755"),
            ops.mknod("/dev/null", 0o20666, 1, 3),
            *more,
        )

    def plan(self, *argv, before=(), after=(), late=(), env=("PATH=/bin",), flags=NAMESPACES, **offsets):
        """``before`` and ``after`` PIVOT, ``late``: after WAIT."""
        return ops.Plan(
            flags,
            (
                *self.before_pivot(*before),
                ops.pivot(),
                *after,
                ops.env(env),
                ops.find(argv[0]),
                ops.wait(),
                *late,
                ops.exec_(argv),
            ),
            **offsets,
        )

    def shell(self, script, **parts):
        return self.plan("sh", "-c", script, **parts)


def kill_quietly(pid):
    """SIGKILL to a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
