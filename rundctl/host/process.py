"""The one place that starts host processes.

Tools are found without PATH: podman and containerd call runtimes with an empty environment.
"""

from __future__ import annotations

import select

from rundctl.errors import HostError, printable, words
from rundctl.host import interruption, patience
from rundctl.lean import os, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

TOOL_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_ENVIRONMENT = {"PATH": ":".join(TOOL_DIRECTORIES), "LC_ALL": "C.UTF-8", "HOME": "/root"}
_STDERR = 2
_WORDS_MAX = 600  # characters of a failed tool's stderr in an error message


def find_tool(name: str) -> str | None:
    """Absolute path of an executable, None if the host has none of that name; a name with a slash stands for itself."""
    candidates = (name,) if "/" in name else tuple(f"{directory}/{name}" for directory in TOOL_DIRECTORIES)
    return next((path for path in candidates if os.access(path, os.X_OK) and os.path.isfile(path)), None)


def need_tool(name: str, hint: str) -> str:
    """`find_tool`, or HostError with a hint such as the Debian package that has it."""
    path = find_tool(name)
    if path is None:
        raise HostError(
            f"{name}: is not in {':'.join(TOOL_DIRECTORIES)}" if "/" not in name else f"{name}: no such program",
            hint=hint,
        )
    return path


def run(
    argv: Sequence[str],
    *,
    what: str,
    hint: str = "",
    data: bytes = b"",
    cwd: str | None = None,
    accepted: tuple[int, ...] = (0,),
    timeout_s: float = 600,
) -> bytes:
    """Run a tool to its end and return its stdout. HostError "`what`: its stderr" if its status is not among ``accepted``."""
    import subprocess  # costs 10 ms to import: never on the path of a start

    command = [need_tool(argv[0], hint), *argv[1:]]
    allowed_s = patience.seconds(timeout_s)
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, cwd=cwd, env=_ENVIRONMENT, timeout=allowed_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{what}: {argv[0]} did not end within {allowed_s:g} s", hint=hint) from error
    except OSError as error:
        raise HostError(f"{what}: {argv[0]}: {words(error)}", hint=hint) from error
    if done.returncode not in accepted:
        said = printable(" ".join(done.stderr.decode(errors="replace").split())[-_WORDS_MAX:])
        raise HostError(f"{what}: {argv[0]}: {said or f'status {done.returncode}'}", hint=hint)
    return done.stdout


def spawn(
    argv: Sequence[str],
    keep_fds: Sequence[int] = (),
    stdio: tuple[int, int, int] = (0, 1, 2),
    environment: Mapping[str, str] = _ENVIRONMENT,
) -> int:
    """Start a program and return its pid; it inherits ``stdio`` as 0, 1, 2 and ``keep_fds`` under the same numbers, nothing else.

    Only descriptors above 2 may be kept. HostError if it cannot be executed.
    """
    with _Inheritable(keep_fds):
        moved = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(_clear_of_stdio(stdio))]
        actions = [*moved, *closing(keep_fds)]
        try:
            return os.posix_spawn(
                argv[0], list(argv), environment, file_actions=actions, setsigmask=(), setsigdef=_RESET_SIGNALS
            )
        except OSError as error:
            raise HostError(f"start {argv[0]}: {words(error)}") from error


def closing(keep: Sequence[int]) -> list[tuple[int, int]]:
    """posix_spawn(3)'s actions that close all but stdio and ``keep``: what our caller has let us inherit is no child's of ours (a lock, a pipe's end)."""
    inherited = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > _STDERR and fd not in keep]
    return [(os.POSIX_SPAWN_CLOSE, fd) for fd in inherited if _is_inherited(fd)]


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # that of listdir
        return False


# Python ignores the first two, and a caller may the third: a child would ignore them with us, and then never know the ends of its own children.
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


def _clear_of_stdio(stdio: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sources of dup2 in an order that cannot overwrite each other: only 0, 1, 2 onto themselves, or descriptors above them."""
    if any(source <= 2 and source != target for target, source in enumerate(stdio)):
        raise ValueError(f"stdio {stdio}: a source below 3 must be its own target")
    return stdio


class _Inheritable:
    """Descriptors that a child may inherit, for the length of a ``with`` block."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = [fd for fd in fds if not os.get_inheritable(fd)]

    def __enter__(self) -> None:
        for fd in self._fds:
            os.set_inheritable(fd, True)

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.set_inheritable(fd, False)


# The signal comes for deaths after prctl(2): who died before is no longer the parent.
_STILL_OURS = ("/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


class Child:
    """A program that lives no longer than a ``with`` block, nor than the process that started it (PDEATHSIG)."""

    __slots__ = ("_pidfd", "pid")

    def __init__(self, argv: Sequence[str], keep_fds: Sequence[int], stdio: tuple[int, int, int]) -> None:
        leash = [need_tool("setpriv", "apt-get install util-linux"), "--pdeathsig", "KILL", "--"]
        self.pid = spawn([*leash, *_STILL_OURS, str(os.getpid()), *argv], keep_fds, stdio)
        self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._reap()

    def fileno(self) -> int:
        """Its pidfd: readable when the program has ended."""
        return self._pidfd

    def wait(self) -> int:
        """Reap it and return its exit code, negative for a signal; 0 again when it was reaped before."""
        if self._pidfd < 0:
            return 0
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        with interruption.allowed():  # it may take minutes, and the ``with`` block kills it
            poller.poll()
        return self._reap()

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        return os.waitstatus_to_exitcode(status)
