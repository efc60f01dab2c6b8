"""Directories of a container that reach the guest by virtio-fs: a virtiofsd beside QEMU for each, kept by the shim.

The root file system is one, the volumes together are another: what one may cache for ever the other must ask for each time.
"""

from __future__ import annotations

import os
import socket

from rundctl.errors import HostError, words
from rundctl.vmm import virtiofsd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack

    from rundctl.engine.settings import Settings
    from rundctl.host.memo import Memo
    from rundctl.vmm.virtiofsd import Daemon

_SOCKET = "virtiofsd.sock"


class Share:
    """One directory and its server.

    tag, socket  by which the guest asks for it, and the socket that QEMU gets, connected to the server
    options      for the shim, which keeps the server; ``inherited``: the descriptors that it is to inherit for that
    command      the server's, up to a word ``;``
    """

    __slots__ = ("command", "inherited", "options", "socket", "tag")

    def __init__(
        self, tag: str, connected: int, options: tuple[str, ...], inherited: tuple[int, ...], command: tuple[str, ...]
    ) -> None:
        self.tag = tag
        self.socket = connected
        self.options = options
        self.inherited = inherited
        self.command = command


class Servers:
    """The virtiofsds of one container: ``daemon`` in the container's own ``directory``, in whose place each sees what it serves; open until ``undo``."""

    __slots__ = ("_daemon", "_directory", "_undo")

    def __init__(self, undo: ExitStack, daemon: Daemon, directory: str) -> None:
        self._undo = undo
        self._daemon = daemon
        self._directory = directory

    def rootfs(self, tag: str, directory: int, *, writable: bool) -> Share:
        """The root file system, with what is mounted inside. Read-only it does not change while it is used; that is what a lower layer is."""
        serves = f"{'rw' if writable else 'ro'},{directory}"
        return self._share(tag, serves, (directory,), fixed=not writable)

    def volumes(self, tag: str, *, submounts: bool) -> Share:
        """What the shim assembles of ``--volume`` options."""
        return self._share(tag, "volumes", (), fixed=False, submounts=submounts)

    def _share(
        self, tag: str, serves: str, inherited: tuple[int, ...], *, fixed: bool, submounts: bool = False
    ) -> Share:
        listening, connected = self._connected()
        options = ("--helper", f"{virtiofsd.NAME},{listening},{serves}")
        command = (*self._daemon.argv(listening, self._directory, fixed=fixed, submounts=submounts), ";")
        return Share(tag, connected, options, (*inherited, listening), command)

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


def find_daemon(settings: Settings, memo: Memo) -> Daemon:
    """The virtiofsd that the settings lead to, remembered. HostError if there is none."""
    path = virtiofsd.find(settings.virtiofsd)
    found = virtiofsd.known(path, memo)
    if found is None:
        found = virtiofsd.examine(path, memo)
        memo.save()
    return found
