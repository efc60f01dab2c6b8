"""The command line of a VM's launcher and shim, and the descriptors that it names."""

from __future__ import annotations

from rundctl.host import native
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rundctl.lean.contextlib import ExitStack


class ShimCommand:
    """``options``, in any order, and ``inherited``: the descriptors that the new process gets under the same numbers."""

    __slots__ = ("_undo", "inherited", "options")

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self.options: list[str] = []
        self.inherited: list[int] = []

    def held(self, fd: int) -> int:
        """Have a descriptor closed on this side, once the start is over."""
        self._undo.callback(os.close, fd)
        return fd

    def add(self, options: Iterable[str], inherited: Iterable[int] = ()) -> None:
        """Tell it more, and let it inherit what that names."""
        self.options += options
        self.inherited += inherited

    def give(self, name: str, fd: int) -> None:
        """Let it inherit a descriptor, and tell it what for: ``--name FD``."""
        self.add((f"--{name}", str(fd)), (fd,))

    def argv(self, commands: Sequence[str]) -> list[str]:
        """All of it; ``commands``: the helpers', each up to a word ``;``, and QEMU's."""
        return [native.program("shim"), "launch", *self.options, "--", *commands]
