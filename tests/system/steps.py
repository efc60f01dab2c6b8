"""A verb that is struck by a signal at a chosen step, so that no test guesses how many milliseconds a step takes.

A step is a call by which rundctl changes or asks something outside of itself: Python tells of each before it is made (sys.addaudithook).
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from .conftest import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Cli

_PROGRAM = """
import os, signal, sys
tell, at, signo, words = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
sys.dont_write_bytecode = True
from rundctl import cli
done = 0

def is_step(event, arguments):
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event.startswith(("os.", "socket.", "fcntl.", "signal.")) and event not in ("os.listdir", "os.scandir")

def hook(event, arguments):
    global done
    if is_step(event, arguments):
        done += 1
        if done == at:
            os.kill(os.getpid(), signo)

sys.addaudithook(hook)
code = cli.main(words)
at, found = 0, done
with open(tell, "w") as file:
    file.write(str(found))
os._exit(code)
"""


class Stepper:
    """Runs the installed rundctl's own code."""

    def __init__(self, cli: Cli, directory: Path) -> None:
        self._cli = cli
        self._tell = directory / "steps"

    def popen(self, at: int, signo: int, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """``at``: the number of the step, from 1; 0: none."""
        program = [sys.executable, "-I", "-c", _PROGRAM, str(self._tell), str(at), str(signo)]
        null = subprocess.DEVNULL
        stdio = {"stdin": null, "stdout": null, "stderr": null}
        return subprocess.Popen([*program, *self._cli.argv(*words)[1:]], **{**stdio, **options})

    def __call__(self, at: int, signo: int, *words: str) -> int:
        """Run it to its end; its exit code."""
        return self.popen(at, signo, *words).wait(DEADLINE_S)

    def told(self) -> int:
        """How many steps the last call had that came to its end."""
        return int(self._tell.read_text())


def some(steps: int, count: int) -> Iterator[int]:
    """So many of them, evenly spread, the first and the last among them."""
    yield from sorted({1 + round(number * (steps - 1) / (count - 1)) for number in range(count)})
