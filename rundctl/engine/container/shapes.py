"""How large a VM a container gets: from its limits, rounded up so that few templates serve many containers. Pure."""

from __future__ import annotations

from rundctl.engine.cgroups.limits import Machine
from rundctl.engine.template.inputs import Request
from rundctl.host.cgroup_settings import PERIOD_US
from rundctl.oci.support import refused
from rundctl.types import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.settings import Settings
    from rundctl.host.cgroup_settings import Limits
    from rundctl.vmm.shape import MachineShape

VCPUS_MAX = 8
MEMORY_MIN_MIB = 64
MEMORY_MAX_MIB = 8192


def request_for(limits: Limits, settings: Settings, rootfs: Rootfs, *, volumes: bool) -> Request:
    """The VM that can give a container what its limits allow, with the devices by which its rootfs and its ``volumes`` come.

    The settings' VM where there is no limit. ConfigError for more than a VM can have: memory up to 8 GiB with the guest's own share, 8 vCPUs.
    """
    return Request(
        memory_mib=memory_mib(limits, settings),
        vcpus=_vcpus(limits),
        root_device=rootfs.device,
        root_mib=rootfs.device_mib,
        volumes=volumes
        and rootfs.device != "virtiofs",  # with virtio-fs they come as the rootfs does, plugged into the clone
    )


def machine_of(shape: MachineShape, settings: Settings) -> Machine:
    """The VM as its limits see it."""
    emulated = shape.accelerator is Accelerator.TCG
    return Machine(
        memory_mib=shape.memory_mib,
        vcpus=shape.vcpus,
        guest_overhead_mib=settings.guest_overhead_mib,
        vmm_overhead_mib=settings.vmm_overhead_mib,
        translations_mib=settings.translations_mib if emulated else 0,
    )


def memory_mib(limits: Limits, settings: Settings) -> int:
    """The memory of that VM. ConfigError as for `request_for`."""
    limit = limits.memory
    if limit is None:
        return settings.memory_mib
    wanted = -(-limit // (1 << 20)) + settings.guest_overhead_mib
    step = next((step for step in _steps() if step >= wanted), None)
    if step is None:
        raise refused(
            "linux.resources.memory.limit",
            f"{limit} bytes: a VM has at most {MEMORY_MAX_MIB} MiB, the guest's own share included",
        )
    return step


def _steps() -> list[int]:
    """64, 96, 128, 192, 256, 384 ... 8192: at most half as much again as was asked for, and 15 templates in all."""
    powers = [MEMORY_MIN_MIB << shift for shift in range(8)]
    return sorted(step for power in powers for step in (power, power * 3 // 2) if step <= MEMORY_MAX_MIB)


def _vcpus(limits: Limits) -> int | None:
    if limits.quota is None:
        return None
    wanted = -(-limits.quota // (limits.period or PERIOD_US))
    if wanted > VCPUS_MAX:
        raise refused("linux.resources.cpu.quota", f"{wanted} CPUs: a VM has at most {VCPUS_MAX}")
    return wanted
