"""How large a VM a container gets: from ``linux.resources``, rounded up so that few templates serve many containers. Pure."""

from __future__ import annotations

from rundctl.engine.template_inputs import Request
from rundctl.oci.support import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.settings import Settings

VCPUS_MAX = 8
MEMORY_MIN_MIB = 64
MEMORY_MAX_MIB = 8192
_DEFAULT_PERIOD_US = 100_000  # the kernel's (Documentation/scheduler/sched-bwc.rst)


def request_for(resources: dict[str, Any], settings: Settings) -> Request:
    """The VM that can give a container what its limits allow; the settings' VM where it has no limit.

    ConfigError for more than a VM can have: memory up to 8 GiB with the guest's own share, 8 vCPUs.
    """
    return Request(memory_mib=_memory_mib(resources, settings), vcpus=_vcpus(resources))


def _memory_mib(resources: dict[str, Any], settings: Settings) -> int | None:
    limit = resources.get("memory", {}).get("limit", 0)
    if limit <= 0:
        return None
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


def _vcpus(resources: dict[str, Any]) -> int | None:
    cpu = resources.get("cpu", {})
    quota = cpu.get("quota", 0)
    if quota <= 0:
        return None
    period = cpu.get("period", 0) or _DEFAULT_PERIOD_US
    wanted = -(-quota // period)
    if wanted > VCPUS_MAX:
        raise refused("linux.resources.cpu.quota", f"{wanted} CPUs: a VM has at most {VCPUS_MAX}")
    return int(wanted)
