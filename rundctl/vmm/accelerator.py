"""KVM or TCG: decided by booting a guest, and remembered.

Opening /dev/kvm proves nothing. There are hosts (nested ones, above all) where it opens and the first virtual processor then fails, or where
an unmodified kernel crawls in KVM's instruction emulator. QEMU's own ``accel=kvm:tcg`` only looks at the opening. So the template's builder
boots under KVM with a deadline, and what happened is kept with all that it depended on.
"""

from __future__ import annotations

import os

from rundctl.errors import ConfigError
from rundctl.host.machine import boot_id
from rundctl.types import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.memo import Memo

KVM_DEVICE = "/dev/kvm"
BOOT_DEADLINE_S = {Accelerator.KVM: 10.0, Accelerator.TCG: 120.0}
AUTO = "auto"
CHOICES = (AUTO, Accelerator.KVM.value, Accelerator.TCG.value)


class Verdict:
    """An accelerator and why it was taken."""

    __slots__ = ("accelerator", "reason")

    def __init__(self, accelerator: Accelerator, reason: str) -> None:
        self.accelerator = accelerator
        self.reason = reason


def given(setting: str, device: str = KVM_DEVICE) -> Verdict | None:
    """The verdict that needs no boot: the settings insist, or there is no /dev/kvm. None: it must be tried."""
    if setting not in CHOICES:
        raise ConfigError(f"settings: accelerator: expected one of {', '.join(CHOICES)}, got {setting!r}")
    if setting != AUTO:
        return Verdict(Accelerator(setting), "asked for in the settings")
    if not os.path.exists(device):
        return Verdict(Accelerator.TCG, f"{device} is missing")
    return None


def recall(memo: Memo, circumstances: str) -> Verdict | None:
    """What an earlier boot decided under the same circumstances; that KVM does not work holds until the host boots: it may only have been busy."""
    kept = memo.recall(f"accelerator {circumstances}")
    if kept is None or kept.get("until_boot", boot_id()) != boot_id():
        return None
    return Verdict(Accelerator(kept["accelerator"]), kept["reason"])


def remember(memo: Memo, circumstances: str, verdict: Verdict) -> None:
    """Keep what a boot decided."""
    answer = {"accelerator": verdict.accelerator.value, "reason": verdict.reason}
    if verdict.accelerator is not Accelerator.KVM:
        answer["until_boot"] = boot_id()
    memo.remember(f"accelerator {circumstances}", answer)


def circumstances(qemu_digest: str, host: str, device: str = KVM_DEVICE) -> str:
    """All that a verdict depends on: QEMU, host kernel and processor, and which device /dev/kvm is."""
    try:
        number = f"{os.stat(device).st_rdev:#x}"
    except OSError:
        number = "none"
    return f"{qemu_digest[:16]} {host} {number}"
