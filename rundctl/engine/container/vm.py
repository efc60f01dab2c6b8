"""One container's VM from the host's side: launcher, shim and QEMU until the commit (docs/adr/0003-process-model.md)."""

from __future__ import annotations

import _socket as socket
import _struct as struct
import time

from rundctl.errors import GuestError, words
from rundctl.guest import wire
from rundctl.host import interruption, patience
from rundctl.host.pidfd import Process, reap
from rundctl.lean import os
from rundctl.lean.contextlib import ExitStack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.engine.records.store import Container

ANSWER_TIMEOUT_S = 60.0  # as in vmm.qmp: patience for an overloaded host; whoever has none can delete --force
COLD_TIMEOUT_S = 120.0
END_TIMEOUT_S = 3.0
LAST_WORDS_S = 2.0  # how long a shim whose conversation ended may take to end itself
_TIMEVAL = struct.Struct("@ll")
_PID = struct.Struct("<III")
_SIGNAL = struct.Struct("<II")
_IDENTITY = struct.Struct(f"<Q{wire.ENTROPY_SIZE}s")


class Sockets:
    """The conversations of a start: in each pair the first end is ours, the second for shim or QEMU."""

    __slots__ = ("agent", "control", "creator", "qmp")

    def __init__(self, undo: ExitStack, container: Container) -> None:
        self.creator = _pair(undo)
        self.agent = _pair(undo)
        self.qmp = _pair(undo)
        self.control = _stream(undo)
        self.control.bind(_control_path(undo, container.directory))
        self.control.listen(8)


def _end_child(pid: int) -> None:
    """Wait for a child of ours that ends by itself, and end it if it does not; it may have been stopped."""
    child = Process.open(pid)  # the pid cannot become another's before we reap it
    if child is not None:
        with child:
            if not child.wait(patience.seconds(END_TIMEOUT_S)):
                child.kill()
                if not child.wait(patience.seconds(END_TIMEOUT_S)):
                    return  # frozen, or it waits for a disk: whoever is its parent after us reaps it
    reap(pid)


def _pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        undo.callback(end.close)
    return pair


def _stream(undo: ExitStack) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    undo.callback(made.close)
    return made


def _control_path(undo: ExitStack, directory: str) -> str:
    # A path below /proc/self/fd fits the 108 bytes of a socket's address, whatever --root is (unix(7)).
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return f"/proc/self/fd/{fd}/control.sock"


class Vm:
    """A VM in the making: it dies with its creator's socket until ``commit``."""

    __slots__ = ("_launcher", "_qmp", "channel", "clone_us", "join_us", "pid")

    def __init__(self, argv: Sequence[str], keep: Sequence[int], sockets: Sockets) -> None:
        self.pid = self.join_us = self.clone_us = 0
        from rundctl.host import process  # which who asks a VM that there is need not pay for

        self._launcher = process.spawn(argv, keep)
        # From here on only shim and QEMU may hold the far ends, or their death would go unseen.
        for _, far in (sockets.creator, sockets.agent, sockets.qmp):
            far.close()
        sockets.control.close()
        self.channel = wire.Channel(sockets.creator[0])
        self.channel.hello(wire.ROLE_CLIENT)
        self._qmp = sockets.qmp[0]

    def wait_pid(self) -> int:
        """Host pid of the shim, as the launcher tells it; also how long it took to join the cgroups and to clone. GuestError if there is none."""
        payload = self.channel.wait_notice(wire.PID, patience.seconds(ANSWER_TIMEOUT_S))
        self.pid, self.join_us, self.clone_us = _PID.unpack(payload)
        _end_child(self._launcher)
        self._launcher = 0
        return self.pid

    def restore(self, uri: str, devices: list[dict[str, str]]) -> None:
        """Load the template's device state and add what it cannot have; the guest runs when this returns. GuestError with QEMU's words."""
        from rundctl.vmm.qmp import Qmp

        monitor = Qmp(self._qmp)
        if not devices:
            monitor.restore(uri)
            return
        self.channel.wait_hello(patience.seconds(ANSWER_TIMEOUT_S))  # from here on the memory is copied
        monitor.restore_and_plug(uri, devices)

    def request(
        self, kind: int, payload: bytes, *, container: int = 1, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> wire.Result:
        """One request and its result. GuestError if none comes in time."""
        self.channel.allow(patience.seconds(timeout_s))
        return self.channel.wait(self.channel.post(kind, payload, container=container))

    def commit(self) -> None:
        """Let the VM live without us. GuestError if it does not any more."""
        result = self.request(wire.COMMIT, b"", container=0)
        if result.error:
            raise GuestError(f"commit: {result.describe()}")

    def end(self) -> None:
        """End a VM that was not committed, and wait until all of it is gone."""
        self.channel.close()
        for pid in (self._launcher, self.pid):
            if pid:
                _end_child(pid)


def connect(undo: ExitStack, container: Container, timeout_s: float) -> wire.Channel:
    """A conversation with a running container's shim, which may take so long (`patience.seconds`), from now to its end. GuestError if it does not take one."""
    allowed_s = patience.seconds(timeout_s)
    deadline = time.monotonic() + allowed_s
    client = _stream(undo)
    # connect(2) to a socket whose backlog is full, since nobody accepts, waits for as long as a send may (socket(7); unix_stream_connect in the kernel).
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(round(allowed_s * 1e6), 10**6)))
    try:
        path = _control_path(undo, container.directory)
        with interruption.allowed():
            client.connect(path)
    except BlockingIOError:
        raise GuestError(f"container {container.id}: its shim did not answer in time") from None
    except OSError as error:  # of the directory, too: a delete may have been faster
        raise GuestError(f"container {container.id}: connect to its shim: {words(error)}") from error
    channel = wire.Channel(client)
    channel.allow(deadline - time.monotonic())
    channel.hello(wire.ROLE_CLIENT)
    return channel


def ask(container: Container, kind: int, payload: bytes, timeout_s: float, *, about: int = 1) -> wire.Result | None:
    """One request about the container's first process (``about`` 0: the VM itself) and its result.

    None if the container ended first; GuestError if it lives and does not answer in time.
    """
    shim = container.shim()
    if shim is None:
        return None
    with shim, ExitStack() as undo:
        try:
            channel = connect(undo, container, timeout_s)
            return channel.wait(channel.post(kind, payload, container=about))
        except GuestError as error:
            if shim.wait(patience.seconds(LAST_WORDS_S)):
                return None
            error.hint = error.hint or "kill KILL and delete --force still work"
            raise


def identity(hostname: str) -> bytes:
    """Payload of IDENTITY: what makes this clone another machine than its template (the clock, entropy, a name)."""
    return _IDENTITY.pack(time.time_ns(), os.getrandom(wire.ENTROPY_SIZE)) + hostname.encode()


def signal_payload(signo: int, *, everyone: bool) -> bytes:
    """Payload of SIGNAL."""
    return _SIGNAL.pack(signo, int(everyone))


def with_last_words(message: str, container: Container) -> str:
    """Add why the VM ended, as far as its shim, QEMU and its guest could say it."""
    words = [message, container.exit_record().get("detail", ""), container.last_words()]
    return ": ".join(dict.fromkeys(word for word in words if word))
