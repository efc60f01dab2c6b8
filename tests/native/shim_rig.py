"""A shim, launched as `create` launches it; the test plays QEMU's end of the agent channel, and some program QEMU."""

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from rundctl.errors import GuestError
from rundctl.guest import wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
# A shim ends with _exit and from a root without /proc: no leak check then, but every other finding is fatal.
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}


class Agent:
    """The guest's end of the agent channel, frame by frame."""

    def __init__(self, connected):
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self.data = b""

    def frame(self):
        while (
            len(self.data) < wire.HEADER.size
            or len(self.data) < wire.HEADER.size + wire.HEADER.unpack_from(self.data)[0]
        ):
            more = self.socket.recv(65536)
            if not more:
                raise EOFError("agent channel")
            self.data += more
        size, kind, flags, container, process, tag = wire.HEADER.unpack_from(self.data)
        payload = self.data[wire.HEADER.size : wire.HEADER.size + size]
        self.data = self.data[wire.HEADER.size + size :]
        return wire.Frame(kind, flags, container, process, tag, payload)

    def expect(self, kind):
        """The next message, joined, which has to be of this type."""
        first = frame = self.frame()
        payload = frame.payload
        while frame.flags & wire.MORE:
            frame = self.frame()
            assert frame.tag == first.tag
            payload += frame.payload
        assert first.type == kind, (first.type, payload)
        return wire.Frame(first.type, first.flags & ~wire.MORE, first.container, first.process, first.tag, payload)

    def is_mute(self, seconds):
        return not self.data and not select.select([self.socket], [], [], seconds)[0]

    def send(self, kind, payload=b"", *, flags=0, container=1, process=0, tag=0):
        self.raw(wire.HEADER.pack(len(payload), kind, flags, container, process, tag) + payload)

    def raw(self, data):
        self.socket.sendall(data)

    def hello(self):
        self.send(wire.HELLO, struct.pack("<4sHH", wire.MAGIC, wire.VERSION, wire.ROLE_AGENT), container=0)

    def result(self, request, error=0, index=0, detail=b""):
        self.send(
            wire.RESULT, struct.pack("<iI", error, index) + detail,
            container=request.container, process=request.process, tag=request.tag,
        )  # fmt: skip

    def heard(self):
        """Wait until all that was sent has been read: what others say from now on comes after it."""
        wait_for(lambda: unread(self.socket) == 0)

    def credit(self, stream, size):
        self.send(wire.CREDIT, struct.pack("<I", size), flags=stream)

    def output(self, payload, stream=wire.STDOUT):
        self.send(wire.DATA, payload, flags=stream)

    def exited(self, status):
        self.send(wire.EXITED, struct.pack("<iI", status, 0))


class Reader(threading.Thread):
    """Reads a descriptor to its end."""

    def __init__(self, fd):
        super().__init__(daemon=True)
        self.fd = fd
        self.data = b""
        self.start()

    def run(self):
        with suppress(OSError):  # a terminal's end is EIO
            while block := os.read(self.fd, 65536):
                self.data += block

    def result(self):
        self.join(DEADLINE_S)
        assert not self.is_alive()
        return self.data


class Shim:
    """A shim, launched as `create` launches it. ``qemu`` is a program that stays, so that the shim has a child to watch."""

    def __init__(
        self,
        program,
        directory,
        *,
        qemu=("/bin/sleep", "1000"),
        stdio=(None, None, None),
        options=(),
        keep=(),
        keep_too=(),
        prepare=None,
    ):
        self.directory = Path(directory)
        if prepare:
            prepare(self.directory)
        self.state = self.directory / "state"
        self.rootfs = self.directory / "rootfs"
        self.rootfs.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.pid = 0
        self.helpers = options.count("--helper")
        self.code = None
        self._pidfd = -1
        self.opened = []
        self.clients = []
        self.creator, creator = socket.socketpair()
        near, agent_end = socket.socketpair()
        self.agent = Agent(near)
        self.agent_far = agent_end  # in life QEMU holds it; here nobody else
        self.qmp, qmp = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.state / "control.sock"))
        listener.listen(80)
        self.log = self.directory / "qemu.log"
        numbers = {
            "creator": creator.fileno(), "agent": agent_end.fileno(), "qmp": qmp.fileno(), "control": listener.fileno(),
            "state": self.fd(self.state, os.O_RDONLY | os.O_DIRECTORY),
            "rootfs": self.fd(self.rootfs, os.O_PATH | os.O_DIRECTORY),
            "log": self.fd(self.log, os.O_RDWR | os.O_CREAT | os.O_APPEND),
        }  # fmt: skip
        argv = [str(program), "launch", "--name", "test", "--hostname", "guest", "--domainname", "example.org"]
        for name, number in numbers.items():
            argv += [f"--{name}", str(number)]
        self.errors = self.directory / "stderr"
        silent, self.silence = os.pipe()  # a stdin on which nothing ever comes
        self.opened.append(silent)
        with self.errors.open("wb") as errors, open(os.devnull, "r+b") as null:
            stdin, stdout, stderr = (
                given if given is not None else other
                for given, other in zip(stdio, (silent, null, errors), strict=True)
            )
            self.launcher = subprocess.Popen(
                [*argv, *options, "--", *map(str, qemu)], stdin=stdin, stdout=stdout, stderr=stderr,
                pass_fds=(*numbers.values(), *keep, *keep_too), env=SANITIZERS,
            )  # fmt: skip
        for far in (creator, agent_end, qmp, listener, *self.opened):
            if isinstance(far, int):
                os.close(far)
            else:
                far.close()
        self.channel = wire.Channel(self.creator)
        self.channel.hello(wire.ROLE_CLIENT)

    def fd(self, path, flags):
        number = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self.opened.append(number)
        return number

    def started(self):
        """Wait for the launcher and take the shim's pid from it."""
        self.pid, *self.took_us = struct.unpack("<III", self._told_pid())
        self._pidfd = os.pidfd_open(self.pid)
        assert self.launcher.wait(DEADLINE_S) == 0
        return self

    def _told_pid(self):
        """The launcher's words. A shim that gives up at once may be heard before them, and is for the test to hear."""
        try:
            return self.channel.wait_notice(wire.PID, DEADLINE_S)
        except GuestError as given_up:
            said = [frame for frame in self.channel._frames if frame.type == wire.RESULT]
            self.channel._frames.clear()
            try:
                told = self.channel.wait_notice(wire.PID, DEADLINE_S)
            except GuestError:
                raise given_up from None
        for frame in said:
            self.channel._data = wire.HEADER.pack(len(frame.payload), wire.RESULT, 0, 0, 0, 0) + frame.payload
        return told

    def commit(self):
        result = self.channel.wait(self.channel.post(wire.COMMIT), DEADLINE_S)
        assert result.error == 0, result.describe()
        return self

    def planned(self):
        """The agent greeted and the container's plan done up to its WAIT."""
        tag = self.channel.post(wire.PLAN, b"a plan", container=1)
        self.agent.expect(wire.HELLO)
        request = self.agent.expect(wire.PLAN)
        self.agent.hello()
        self.agent.result(request)
        assert self.channel.wait(tag, DEADLINE_S).error == 0
        return self

    def running(self):
        """Planned, committed, started."""
        self.planned().commit()
        tag = self.channel.post(wire.START, container=1)
        self.agent.result(self.agent.expect(wire.START))
        assert self.channel.wait(tag, DEADLINE_S).error == 0
        return self

    def client(self):
        """A conversation over control.sock."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.connect(str(self.state / "control.sock"))
        self.clients.append(connected)
        channel = wire.Channel(connected)
        channel.hello(wire.ROLE_CLIENT)
        return channel

    def wait(self, deadline_s=DEADLINE_S):
        """The shim's exit code (negative: signal), once it has ended."""
        if self.code is None:
            assert select.select([self._pidfd], [], [], deadline_s)[0], "the shim did not end"
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
        return self.code

    def is_alive(self, seconds):
        return self.code is None and not select.select([self._pidfd], [], [], seconds)[0]

    def record(self):
        return dict(line.split("=", 1) for line in (self.state / "exit").read_text().splitlines())

    def qemu_pid(self):
        """The shim's child after all helpers, which have to live, once it has become the program that stands for QEMU."""
        return wait_for(lambda: self._child(self.helpers))

    def helper_pid(self):
        """The same of the first helper."""
        return wait_for(lambda: self._child(0))

    def _child(self, index):
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        child = children[index] if len(children) > index else None
        if child and os.readlink(f"/proc/{child}/exe") != os.readlink(f"/proc/{self.pid}/exe"):
            return int(child)
        return None

    @contextmanager
    def stopped(self):
        """What happens meanwhile it finds all at once."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def end(self):
        for ours in (self.creator, self.agent.socket, self.qmp, *self.clients):
            ours.close()
        os.close(self.silence)
        if self.pid and self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait()
        self.launcher.kill()
        self.launcher.wait()
        if self.errors.exists():
            assert "Sanitizer" not in (text := self.errors.read_text()), text
            assert "runtime error" not in text, text


def unread(connected):
    """How much of what was sent over a socket the other end has not read."""
    return struct.unpack("i", fcntl.ioctl(connected, termios.TIOCOUTQ, bytes(4)))[0]


def wait_for(condition, deadline_s=DEADLINE_S):
    """What ``condition`` returns, once it is true: for what the kernel gives no event for."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "deadline passed"
        time.sleep(0.005)
    return found
