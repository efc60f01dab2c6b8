"""The guest's initramfs: the agent as /init and the modules it loads, nothing else. Same inputs, same bytes."""

from __future__ import annotations

from rundctl.guest.cpio import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.guest.kernel import Kernel

_DIRECTORIES = ("dev", "modules", "proc", "sys")
_CONSOLE = (5, 1)  # the kernel opens /dev/console for /init before devtmpfs is there


def build(kernel: Kernel, agent: bytes) -> bytes:
    """A newc archive; the kernel unpacks it into the root that the agent starts in."""
    archive = Archive()
    for directory in _DIRECTORIES:
        archive.directory(directory)
    archive.character_device("dev/console", *_CONSOLE)
    archive.file("init", agent, 0o755)
    for name, data in kernel.modules():
        archive.file(f"modules/{name}", data)
    return archive.close()
