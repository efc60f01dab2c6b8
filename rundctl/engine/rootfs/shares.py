"""Directories of a container that reach the guest by virtio-fs: a virtiofsd beside QEMU for each, kept by the shim.

The root file system is one, the volumes together are another: what one may cache for ever the other must ask for each time.
"""

from __future__ import annotations

import os
import socket

from rundctl.engine.template import inputs
from rundctl.errors import HostError, words
from rundctl.vmm import virtiofsd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack

    from rundctl.engine.settings import Settings
    from rundctl.vmm.virtiofsd import Daemon

_SOCKET = "virtiofsd.sock"


class Shares:
    """All of one container's: ``options`` and ``commands`` for the shim, which is to inherit ``inherited``; (tag, connected socket) for QEMU."""

    __slots__ = ("_daemon", "_directory", "_undo", "commands", "inherited", "options", "sockets")

    def __init__(self, undo: ExitStack, daemon: Daemon, directory: str) -> None:
        """``directory``: the container's own, in whose place a daemon sees what it serves."""
        self._undo = undo
        self._daemon = daemon
        self._directory = directory
        self.options: list[str] = []
        self.commands: list[str] = []
        self.inherited: list[int] = []
        self.sockets: list[tuple[str, int]] = []

    def add_rootfs(self, tag: str, directory: int, *, writable: bool) -> None:
        """The root file system, with what is mounted inside. Read-only it does not change while it is used; that is what a lower layer is."""
        self.inherited.append(directory)
        self._add(tag, f"{'rw' if writable else 'ro'},{directory}", fixed=not writable)

    def add_volumes(self, tag: str, *, submounts: bool) -> None:
        """What the shim assembles of ``--volume`` options."""
        self._add(tag, "volumes", fixed=False, submounts=submounts)

    def _add(self, tag: str, serves: str, *, fixed: bool, submounts: bool = False) -> None:
        listening, connected = self._connected()
        self.options += ["--helper", f"{virtiofsd.NAME},{listening},{serves}"]
        self.commands += [*self._daemon.argv(listening, self._directory, fixed=fixed, submounts=submounts), ";"]
        self.inherited.append(listening)
        self.sockets.append((tag, connected))

    def _connected(self) -> tuple[int, int]:
        """A listening socket for the daemon, and one for QEMU that waits to be accepted. Nobody else can connect: the name is gone."""
        directory = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)
        path = f"/proc/self/fd/{directory}/{_SOCKET}"  # fits a socket's address, whatever --root is (unix(7))
        try:
            listening = self._undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listening.bind(path)
            listening.listen(1)
            connected = self._undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connected.connect(path)
            os.unlink(path)
        except OSError as error:
            raise HostError(f"make a socket for virtiofsd in {self._directory}: {words(error)}") from error
        finally:
            os.close(directory)
        return listening.fileno(), connected.fileno()


def find_daemon(settings: Settings) -> Daemon:
    """The virtiofsd that the settings lead to, remembered. HostError if there is none."""
    path = virtiofsd.find(settings.virtiofsd)
    memo = inputs.open_memo(settings)
    found = virtiofsd.known(path, memo)
    if found is None:
        found = virtiofsd.examine(path, memo)
        memo.save()
    return found
