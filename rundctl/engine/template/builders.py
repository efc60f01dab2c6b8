"""Who builds templates now: each key has one builder at a time, different keys are built at once, and who waits says for whom. Cold."""

from __future__ import annotations

import os

from rundctl.engine.template import store
from rundctl.errors import HostError, words
from rundctl.host import files, workspace
from rundctl.host.workspace import Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from rundctl.types import Progress


class Builders:
    """A ``with`` block in which the directory of templates stays where it is, and what killed builders left is gone.

    ``progress`` is told of each wait, ``warn`` of long ones. HostError or OSError if the directory cannot be used.
    """

    __slots__ = ("_home", "_lock", "_warn", "progress")

    def __init__(self, home: str, progress: Progress, warn: Progress | None = None) -> None:
        self._home = home
        self._warn = warn
        self._lock = files.Lock(_lock_path(home), shared=True)
        self.progress = progress

    def __enter__(self) -> Self:
        self._lock.__enter__()
        workspace.sweep(store.root(self._home))
        return self

    def __exit__(self, *details: object) -> None:
        self._lock.__exit__(*details)

    def turn(self, name: str, what: str) -> Workspace:
        """The right to do what only one may do at a time, under a name (a template's key, for its builder), and an empty directory to do it in."""
        return Workspace(f"{store.root(self._home)}/.{name}{workspace.SUFFIX}", what, self.progress, self._warn)


def remove(home: str, key: str) -> bool:
    """Remove a template, at once for all who look for it; False if somebody builds it just now, or has removed it. Within a `Builders` block.

    HostError if the host refuses.
    """
    root = store.root(home)
    try:
        lock = files.lock_directory(f"{root}/.{key}{workspace.SUFFIX}", wait=False)
        if lock is None:
            return False
        with Workspace(f"{root}/.{key}{workspace.SUFFIX}", "", _silent, lock=lock) as directory:
            os.rename(f"{root}/{key}", f"{directory}/removed")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"remove template {key}: {words(error)}") from error
    return True


class NoBuilders(files.Lock):
    """A ``with`` block in which nobody builds: for who puts another directory in the place of the templates'."""

    __slots__ = ("_progress", "_where")

    def __init__(self, home: str, progress: Progress) -> None:
        self._where = _lock_path(home)
        self._progress = progress
        super().__init__(self._where)

    def __enter__(self) -> Self:
        free = files.try_lock(self._where)
        if free is None:
            self._progress("waiting for others, which build templates")
        else:
            os.close(free)
        return super().__enter__()


def _lock_path(home: str) -> str:
    return f"{store.root(home)}/.lock"


def _silent(_: str) -> None:
    """Nobody is waited for."""
