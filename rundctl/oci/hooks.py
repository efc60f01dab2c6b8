"""Run the hooks of config.json on the host, the container's state on their stdin (runtime-spec, "Hooks")."""

from __future__ import annotations

import select

from rundctl.errors import GuestError, HostError, printable
from rundctl.host import interruption, process
from rundctl.host import pidfd as pidfds
from rundctl.lean import json, os, signal
from rundctl.lean.contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_OUTPUT_SHOWN = 2048  # bytes of a failed hook's output that go into the error


def run(kind: str, hooks: list[dict[str, Any]], state: dict[str, Any], directory: str, shim: int | None = None) -> None:
    """Run hooks of a kind, in order, in ``directory``; the first that fails raises HostError: all kinds but poststop.

    ``shim``: the pidfd of a container without which they are for nothing: if it ends first the hook is killed, GuestError.
    """
    with _inside(directory):
        for index, hook in enumerate(hooks):
            _run_one(hook, f"{kind} hook #{index} {hook['path']}", state, shim)


def run_all(kind: str, hooks: list[dict[str, Any]], state: dict[str, Any], directory: str) -> list[str]:
    """Run all hooks of a kind whatever fails, and return a line for each failure: poststop."""
    failures = []
    with _inside(directory):
        for index, hook in enumerate(hooks):
            try:
                _run_one(hook, f"{kind} hook #{index} {hook['path']}", state, None)
            except HostError as error:
                failures.append(str(error))
    return failures


@contextmanager
def _inside(directory: str) -> Iterator[None]:
    """posix_spawn(3) has no directory to start in, so we go there. A bundle that is gone must not keep poststop hooks from running: they run here."""
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)  # needs no permission, and works in a directory that was removed
    try:
        with suppress(OSError):
            os.chdir(directory)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _run_one(hook: dict[str, Any], name: str, state: dict[str, Any], shim: int | None) -> None:
    """Files in memory rather than pipes for input and output: no daemon that a hook leaves behind can block us."""
    timeout_s = hook.get("timeout", 0)
    state_file = os.memfd_create("state")
    output = os.memfd_create("output")
    try:
        os.write(state_file, json.dumps(state).encode())
        os.lseek(state_file, 0, os.SEEK_SET)
        reason = _reason(_wait(_spawn(hook, name, state_file, output), name, timeout_s, shim), timeout_s)
        if reason:
            raise HostError(f"error running {name}: {reason}{_tail(output)}")
    finally:
        os.close(state_file)
        os.close(output)


def _spawn(hook: dict[str, Any], name: str, state_file: int, output: int) -> int:
    """Its pid. HostError if it cannot be started.

    As with runc a hook ignores no signal, whatever our caller ignores, and we while we undo a start. Without a list ``env`` it has our caller's
    environment: a script without a PATH does not find what is in /usr/sbin.
    """
    if not os.path.isabs(hook["path"]):
        raise HostError(f"error running {name}: the path is not absolute")
    variables = (variable.partition("=") for variable in hook.get("env") or ())
    try:
        return os.posix_spawn(
            hook["path"],
            hook.get("args") or [hook["path"]],
            os.environ if hook.get("env") is None else {key: value for key, _, value in variables if key},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, state_file, 0),
                *((os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2)),
                *process.closing(()),
            ],
            setsigmask=(),
            setsigdef=signal.valid_signals(),
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise HostError(f"error running {name}: {reason}") from error


def _wait(pid: int, name: str, timeout_s: int, shim: int | None) -> int | None:
    """Wait status of the hook, or None if it took too long; it does not outlive this. GuestError if the shim ended first."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        for fd in (pidfd, shim):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        with interruption.allowed():
            ended = [fd for fd, _ in pidfds.poll(poll, timeout_s or float("inf"))]
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # of one that has ended it changes nothing
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
    if ended and pidfd not in ended:
        raise GuestError(f"{name}: killed, because the container was killed")
    return status if ended else None


def _reason(status: int | None, timeout_s: int) -> str:
    """Why a hook failed; empty if it did not."""
    if status is None:
        return f"no end within {timeout_s} s"
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    return f"exit status {code}" if code else ""


def _tail(output: int) -> str:
    """The end of what the hook wrote, on one line."""
    size = os.fstat(output).st_size
    text = os.pread(output, _OUTPUT_SHOWN, max(0, size - _OUTPUT_SHOWN)).decode(errors="replace")
    return f": {printable(' '.join(text.split()))}" if text.strip() else ""
