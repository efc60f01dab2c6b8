"""MachineShape: everything a template depends on, and the one source of both template's and clone's QEMU command line."""

from __future__ import annotations

from _blake2 import blake2b  # the C module itself: hashlib loads OpenSSL, for 5 ms

from rundctl.lean import json
from rundctl.types import MemoryMode, TemplateKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.types import Accelerator


class MachineShape:
    """A machine as QEMU builds it, with the digests of all that runs in it. Two equal shapes can share a template.

    ``digests`` names what the guest is made of (kernel, agent, QEMU, firmware); ``host`` is what the CPU model takes from the host.
    ``root_device`` is what the root file system comes by: "9p"; "pmem" or "blk" for an image of at most ``root_mib`` below the upper's disk; "disk"
    where it is on a disk of ``root_mib`` itself, in place of the upper's; or "virtiofs", which is plugged into a clone.
    ``volumes``: whether there is a device for bind mounts.
    """

    __slots__ = (
        "accelerator",
        "digests",
        "host",
        "machine",
        "memory_mib",
        "qemu",
        "qemu_version",
        "root_device",
        "root_mib",
        "upper_mib",
        "vcpus",
        "volumes",
    )

    def __init__(  # noqa: PLR0913  one argument a property of the machine, all by name
        self,
        *,
        qemu: str,
        qemu_version: tuple[int, int],
        machine: str,
        accelerator: Accelerator,
        memory_mib: int,
        vcpus: int,
        upper_mib: int,
        digests: dict[str, str],
        host: str,
        root_device: str = "9p",
        root_mib: int = 0,
        volumes: bool = False,
    ) -> None:
        self.qemu = qemu
        self.qemu_version = qemu_version
        self.machine = machine
        self.accelerator = accelerator
        self.memory_mib = memory_mib
        self.vcpus = vcpus
        self.upper_mib = upper_mib
        self.digests = digests
        self.host = host
        self.root_device = root_device
        self.root_mib = root_mib
        self.volumes = volumes

    @property
    def memory_mode(self) -> MemoryMode:
        """How clones get their memory: virtiofsd maps it, so it cannot be private."""
        return MemoryMode.COPY if self.root_device == "virtiofs" else MemoryMode.COW

    def facts(self) -> dict[str, Any]:
        """The shape as plain data, for the manifest."""
        return {
            "qemu": self.qemu,
            "qemu_version": list(self.qemu_version),
            "machine": self.machine,
            "accelerator": self.accelerator.value,
            "memory_mib": self.memory_mib,
            "vcpus": self.vcpus,
            "upper_mib": self.upper_mib,
            "root_device": self.root_device,
            "root_mib": self.root_mib,
            "volumes": self.volumes,
            "digests": self.digests,
            "host": self.host,
        }

    def canonical(self) -> str:
        """The same text for the same shape, whatever order its parts were found in."""
        return json.dumps(self.facts(), sort_keys=True, separators=(",", ":"))

    def key(self, argv_format: str) -> TemplateKey:
        """Name of the template: a digest over the shape and over how this version of the program turns it into a command line."""
        return TemplateKey(blake2b(f"{argv_format}\n{self.canonical()}".encode(), digest_size=16).hexdigest())
