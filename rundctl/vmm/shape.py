"""MachineShape: everything a template depends on, and the one source of both template's and clone's QEMU command line."""

from __future__ import annotations

import json
from _blake2 import blake2b  # the C module itself: hashlib loads OpenSSL, for 5 ms

from rundctl.types import MemoryMode, TemplateKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.types import Accelerator


class MachineShape:
    """A machine as QEMU builds it, with the digests of all that runs in it. Two equal shapes can share a template.

    ``digests`` names what the guest is made of (kernel, agent, QEMU, firmware); ``host`` is what the CPU model takes from the host.
    ``lower`` is the device that the shared layer of the root file system comes by: "9p", or "pmem" or "blk" for an image of at most
    ``lower_mib``; or "disk" where there is none, and a disk of ``lower_mib`` in place of the upper's; or "virtiofs", which is plugged into a clone.
    ``volumes``: whether there is a device for bind mounts.
    """

    __slots__ = (
        "accelerator",
        "digests",
        "host",
        "lower",
        "lower_mib",
        "machine",
        "memory_mib",
        "qemu",
        "qemu_version",
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
        lower: str = "9p",
        lower_mib: int = 0,
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
        self.lower = lower
        self.lower_mib = lower_mib
        self.volumes = volumes

    @property
    def memory_mode(self) -> MemoryMode:
        """How clones get their memory: virtiofsd maps it, so it cannot be private."""
        return MemoryMode.COPY if self.lower == "virtiofs" else MemoryMode.COW

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
            "lower": self.lower,
            "lower_mib": self.lower_mib,
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
