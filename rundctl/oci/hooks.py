"""Run the hooks of config.json on the host, the container's state on their stdin (runtime-spec, "Hooks")."""

from __future__ import annotations

import json
import os
import select
import signal
import time

from rundctl.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OUTPUT_SHOWN = 2048  # bytes of a failed hook's output that go into the error
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def run(kind: str, hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Run hooks of a kind, in order; the first that fails raises HostError: all kinds but poststop."""
    for index, hook in enumerate(hooks):
        _run_one(hook, f"{kind} hook #{index} {hook['path']}", state)


def run_all(hooks: list[dict[str, Any]], state: dict[str, Any], kind: str) -> list[str]:
    """Run all hooks of a kind whatever fails, and return a line for each failure: poststop."""
    failures = []
    for index, hook in enumerate(hooks):
        try:
            _run_one(hook, f"{kind} hook #{index} {hook['path']}", state)
        except HostError as error:
            failures.append(str(error))
    return failures


def _run_one(hook: dict[str, Any], name: str, state: dict[str, Any]) -> None:
    """Files in memory rather than pipes for input and output: no daemon that a hook leaves behind can block us."""
    timeout_s = hook.get("timeout", 0)
    state_file = os.memfd_create("state")
    output = os.memfd_create("output")
    try:
        os.write(state_file, json.dumps(state).encode())
        os.lseek(state_file, 0, os.SEEK_SET)
        reason = _reason(_spawn_and_wait(hook, name, (state_file, output), timeout_s), timeout_s)
        if reason:
            raise HostError(f"error running {name}: {reason}{_tail(output)}")
    finally:
        os.close(state_file)
        os.close(output)


def _spawn_and_wait(hook: dict[str, Any], name: str, files: tuple[int, int], timeout_s: int) -> int | None:
    """Wait status of the hook, or None if it was killed for taking too long. HostError if it cannot be started."""
    if not os.path.isabs(hook["path"]):
        raise HostError(f"error running {name}: the path is not absolute")
    variables = (variable.partition("=") for variable in hook.get("env", ()))
    state_file, output = files
    try:
        pid = os.posix_spawn(
            hook["path"],
            hook.get("args") or [hook["path"]],
            {key: value for key, _, value in variables if key},
            file_actions=[(os.POSIX_SPAWN_DUP2, state_file, 0), *((os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2))],
            setsigmask=(),
            setsigdef=_IGNORED_BY_PYTHON,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise HostError(f"error running {name}: {reason}") from error
    return _wait(pid, timeout_s)


def _wait(pid: int, timeout_s: int) -> int | None:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        # Python resumes poll(2) after a signal handler by itself, with the time that is left.
        ended = poll.poll(max(0, deadline - time.monotonic()) * 1000 if timeout_s else None)
        if not ended:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        return status if ended else None
    finally:
        os.close(pidfd)


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
    return f": {' '.join(text.split())}" if text.strip() else ""
