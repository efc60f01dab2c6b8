"""The framed protocol's Python side (native/PROTOCOL.md, docs/adr/0001-wire-protocol.md): frames, requests and their results."""

from __future__ import annotations

import _socket as socket
import _struct as struct
import errno
import select
import time

from rundctl.errors import GuestError, printable
from rundctl.host import interruption, patience
from rundctl.lean import os

VERSION = 2
MAGIC = b"RUND"
PAYLOAD_MAX = 32 * 1024
MESSAGE_MAX = 8 * 1024 * 1024
WINDOW = 128 * 1024
ENTROPY_SIZE = 64
FILES_MAX = 64
STREAM_MASK = 0x03
MORE = 0x80
IGNORABLE = 0x80  # types from here on may be ignored by who does not know them

STDIN, STDOUT, STDERR = 0, 1, 2
ROLE_CLIENT, ROLE_SHIM, ROLE_AGENT = 1, 2, 3

HELLO = 1
RESULT = 2
IDENTITY = 3
SETTLE = 4
PLAN = 5
START = 6
SIGNAL = 7
DATA = 8
CREDIT = 9
CLOSE = 10
EXITED = 11
PID = 12
COMMIT = 13
STOP = 14
PAUSE = 15
RESUME = 16
CLOCK = 17
READ = 18
PROCESSES = 19

# Bits of MOUNT's last argument
MOUNT_COPY_UP = 1
MOUNT_NO_LINK = 2

EXITED_OOM = 1  # a flag of EXITED: the guest's kernel has killed a process of the container for want of memory

HEADER = struct.Struct("<IBBHII")
_HELLO = struct.Struct("<4sHH")
_RESULT = struct.Struct("<iI")
_BUFFER = 65536
_NEVER = float("inf")
_SEND_TIMEOUT_S = 60.0  # where nobody says less
_REST_TIMEOUT_S = 1.0  # of what a peer that has gone had sent before


class Frame:
    """One frame: header fields and payload."""

    __slots__ = ("container", "flags", "payload", "process", "tag", "type")

    def __init__(self, type: int, flags: int, container: int, process: int, tag: int, payload: bytes) -> None:  # noqa: A002 (the header's fields)
        self.type = type
        self.flags = flags
        self.container = container
        self.process = process
        self.tag = tag
        self.payload = payload


class Result:
    """The answer to a request: errno (0 = success), the plan operation that failed, and what else it has: words for the user, or data."""

    __slots__ = ("data", "error", "index")

    def __init__(self, error: int, index: int, data: bytes = b"") -> None:
        self.error = error
        self.index = index
        self.data = data

    @property
    def detail(self) -> str:
        """The words, which the guest may have written: a line of plain characters."""
        return printable(self.data.decode("utf-8", "replace"))

    def describe(self) -> str:
        """The error in words, plain ones."""
        if self.error == errno.ECHILD:
            return self.detail or "it ended"
        words = os.strerror(self.error).lower() if self.error else "success"
        return f"{self.detail}: {words}" if self.detail else words


class LateError(GuestError):
    """Nothing came in time: it may come yet."""


class Channel:
    """One conversation over a connected stream socket. Every failure is a GuestError in words.

    Nothing takes longer than it may, whatever the other end does: `allow` says how long all that follows may take, sending as well, and each wait has
    a time of its own.
    """

    __slots__ = ("_closed", "_data", "_deadline", "_frames", "_greeted", "_results", "_socket", "_tag")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._data = b""
        self._frames: list[Frame] = []
        self._results: dict[int, Result] = {}
        self._tag = 0
        self._greeted = False
        self._closed = False
        self._deadline = _NEVER

    def allow(self, timeout_s: float) -> None:
        """From now on all that follows may take so long; a later call gives another time."""
        self._deadline = time.monotonic() + timeout_s

    def hello(self, role: int) -> None:
        """Say who we are; the peer's HELLO is checked when it arrives."""
        self.notify(HELLO, _HELLO.pack(MAGIC, VERSION, role))

    def notify(self, type: int, payload: bytes = b"", *, container: int = 0, process: int = 0, flags: int = 0) -> None:  # noqa: A002
        """Send a frame that gets no answer."""
        self._send(HEADER.pack(len(payload), type, flags, container, process, 0) + payload)

    def post(self, type: int, payload: bytes = b"", *, container: int = 0, process: int = 0) -> int:  # noqa: A002
        """Send a request, in as many frames as it takes; returns the tag to wait for."""
        if len(payload) > MESSAGE_MAX:
            raise GuestError(
                f"a message of {len(payload)} bytes is over the protocol's {MESSAGE_MAX}",
                hint="are environment and arguments too long?",
            )
        self._tag += 1
        frames = []
        for offset in range(0, max(len(payload), 1), PAYLOAD_MAX):
            part = payload[offset : offset + PAYLOAD_MAX]
            flags = MORE if offset + PAYLOAD_MAX < len(payload) else 0
            frames.append(HEADER.pack(len(part), type, flags, container, process, self._tag) + part)
        self._send(b"".join(frames))
        return self._tag

    def wait(self, tag: int, timeout_s: float = _NEVER) -> Result:
        """Wait for the result of a request."""
        deadline = self._until(timeout_s)
        while tag not in self._results:
            self._read_frame(deadline)
        return self._results.pop(tag)

    def next_frame(self, timeout_s: float) -> Frame:
        """The next frame that is neither HELLO nor the RESULT of a request."""
        deadline = self._until(timeout_s)
        while not self._frames:
            self._read_frame(deadline)
        return self._frames.pop(0)

    def wait_hello(self, timeout_s: float) -> None:
        """Wait until the peer has greeted. GuestError with its words if it gives up instead."""
        deadline = self._until(timeout_s)
        while not self._greeted:
            self._read_frame(deadline)

    def wait_notice(self, type: int, timeout_s: float) -> bytes:  # noqa: A002
        """Payload of the next notification of this type. A RESULT nobody asked for means that the peer gives up: GuestError with its words."""
        deadline = self._until(timeout_s)
        while True:
            for index, frame in enumerate(self._frames):
                if frame.type == type:
                    return self._frames.pop(index).payload
                self._check_given_up(frame)
            self._read_frame(deadline)

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()

    def _until(self, timeout_s: float) -> float:
        return min(self._deadline, time.monotonic() + timeout_s)

    def _send(self, data: bytes) -> None:
        """Who does not read, because it was stopped, say, lets the socket become full."""
        deadline = self._until(patience.seconds(_SEND_TIMEOUT_S))
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._poll(select.POLLOUT, deadline)
        except OSError:
            # The peer may have said why before it went: what it sent is still to be read.
            self._closed = True
            self._read_rest()
            raise GuestError("the VM ended") from None

    def _read_rest(self) -> None:
        deadline = time.monotonic() + patience.seconds(_REST_TIMEOUT_S)
        while True:
            self._read_frame(deadline)

    def _check_given_up(self, frame: Frame) -> None:
        if frame.type == RESULT and frame.tag == 0:
            result = Result(*_parse_result(frame.payload))
            raise GuestError(result.detail or os.strerror(result.error).lower())

    def _read_frame(self, deadline: float) -> None:
        while len(self._data) < HEADER.size or len(self._data) < HEADER.size + self._size():
            self._receive(deadline)
        size, kind, flags, container, process, tag = HEADER.unpack_from(self._data)
        payload = self._data[HEADER.size : HEADER.size + size]
        self._data = self._data[HEADER.size + size :]
        self._sort(Frame(kind, flags, container, process, tag, payload))

    def _size(self) -> int:
        size = int(HEADER.unpack_from(self._data)[0])
        if size > PAYLOAD_MAX:
            raise GuestError(f"protocol violation: a frame of {size} bytes")
        return size

    def _sort(self, frame: Frame) -> None:
        if frame.type == HELLO:
            _check_hello(frame.payload)
            self._greeted = True
        elif not self._greeted and frame.type != PID and not (frame.type == RESULT and frame.tag == 0):
            raise GuestError("protocol violation: no HELLO first")
        elif frame.type == RESULT and frame.tag:
            self._results[frame.tag] = Result(*_parse_result(frame.payload))
        else:
            self._frames.append(frame)
            self._check_given_up(frame)

    def _poll(self, events: int, deadline: float) -> None:
        """Wait for the socket. Late is late, also if there is something: else who never stops to send would be waited for without end."""
        left_s = deadline - time.monotonic()
        poller = select.poll()
        poller.register(self._socket, events)
        with interruption.allowed():
            ready = left_s >= 0 and poller.poll(left_s * 1000)
        if not ready:
            raise LateError("the VM did not answer in time")

    def _receive(self, deadline: float) -> None:
        self._poll(select.POLLIN, deadline)
        try:
            data = self._socket.recv(_BUFFER)
        except OSError as error:
            raise GuestError(f"the VM ended: {error.strerror}") from error
        if not data:
            raise GuestError("the VM ended")
        self._data += data


def _check_hello(payload: bytes) -> None:
    if len(payload) != _HELLO.size:
        raise GuestError("protocol violation: a HELLO of the wrong size")
    magic, version, _ = _HELLO.unpack(payload)
    if magic != MAGIC:
        raise GuestError("protocol violation: the peer does not speak rundctl's protocol")
    if version != VERSION:
        raise GuestError(
            f"protocol version {version} at the other end, {VERSION} here",
            hint="the container was made by another rundctl; kill KILL and delete --force still work",
        )


def _parse_result(payload: bytes) -> tuple[int, int, bytes]:
    if len(payload) < _RESULT.size:
        raise GuestError("protocol violation: a RESULT that is too short")
    error, index = _RESULT.unpack_from(payload)
    return error, index, payload[_RESULT.size :]
