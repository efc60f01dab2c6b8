"""Work that a call begins and does not wait for: a process of its own, that nobody has to reap and that takes nothing from whoever needs it."""

from __future__ import annotations

import sys

from rundctl.host import process
from rundctl.lean import json, os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG_BYTES = 1 << 20
_PRELUDE = """import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job["path"]
"""


def keep_only(job: Mapping[str, object]) -> int:
    """To be called first by the program: let go of all that its starter let it inherit but the lock, which is returned."""
    lock = int(str(job["lock"]))
    os.set_inheritable(lock, False)
    os.closerange(3, lock)  # the caller's callers may have let theirs be inherited: podman waits for them to close
    os.closerange(lock + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    return lock


def start(program: str, job: Mapping[str, object], lock: int, log_path: str, *, idle: bool = True) -> None:
    """Run a Python program that finds ``job`` (JSON) under that name. HostError or OSError if it cannot be started.

    A new interpreter, since a fork of ours would go on with our memory and descriptors. setsid's fork makes it an orphan at once; if it is ``idle``
    work, it has the lowest priority for CPU and disk. It inherits the lock, and so holds it as long as it lives; what it prints is appended to the log.
    """
    tools = (("setsid", "--fork"), *((("ionice", "-t", "-c3"), ("nice", "-n19")) if idle else ()))
    argv = [word for name, *rest in tools for word in (process.need_tool(name, "apt-get install util-linux"), *rest)]
    text = json.dumps({"path": [os.path.abspath(path) for path in sys.path], **job})
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(log).st_size > _LOG_BYTES:
            os.ftruncate(log, 0)
        python = [sys.executable, "-I", "-S", "-c", _PRELUDE + program, text]
        pid = process.spawn([*argv, *python], (lock,), (null, log, log))
    finally:
        os.close(null)
        os.close(log)
    os.waitpid(pid, 0)
