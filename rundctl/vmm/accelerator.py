"""KVM or TCG: decided by booting a guest, and remembered.

That KVM makes a virtual machine proves little. There are hosts (nested ones, above all) where the first virtual processor then fails, or where an
unmodified kernel crawls in KVM's instruction emulator. QEMU's own ``accel=kvm:tcg`` only looks at the opening. So the template's builder boots under KVM
(`template.trial`), and what happened is kept with all that it depended on.

That KVM works is kept for good. That it does not is kept until the next trial: a host may have been busy, and nobody is to run emulated for weeks because
of a bad minute. Trials come at growing intervals, and no start waits for one but the first.
"""

from __future__ import annotations

import time

from rundctl.errors import ConfigError
from rundctl.host.machine import boot_id
from rundctl.types import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.host.memo import Memo
    from rundctl.vmm.kvm import Kvm

# How long a booting guest may take: in all, and to say its next word. KVM has no less than emulation: nested, on a slow host, it takes 10 s and more.
BOOT_TIMEOUT_S = 120.0
SILENCE_TIMEOUT_S = 30.0
# A guest that boots so slowly by KVM may be faster without: then both are tried, and compared.
DOUBTFUL_TIMEOUT_S = 10.0
RETRY_FIRST_S = 900.0
RETRY_MOST_S = 86400.0
AUTO = "auto"
CHOICES = (AUTO, Accelerator.KVM.value, Accelerator.TCG.value)
ACCEPT_HINT = 'accelerator = "tcg" in config.toml accepts it'


class Verdict:
    """An accelerator and why it was taken. ``has_fallen``: it is emulation, where `auto` should have had KVM; `hint` says the way out.

    ``retry_s``: from when on (CLOCK_BOOTTIME) KVM is to be tried again; 0: nobody has to.
    """

    __slots__ = ("accelerator", "has_fallen", "hint", "reason", "retry_s")

    def __init__(
        self,
        accelerator: Accelerator,
        reason: str,
        *,
        hint: str = "",
        has_fallen: bool = False,
        retry_s: float = 0.0,
    ) -> None:
        self.accelerator = accelerator
        self.reason = reason
        self.hint = hint
        self.has_fallen = has_fallen
        self.retry_s = retry_s

    @property
    def is_due(self) -> bool:
        """Whether KVM is to be tried again now."""
        return 0 < self.retry_s <= now_s()

    def warning(self) -> str:
        """What each start says while it ``has_fallen``."""
        return f"emulated, so many times slower: {self.reason} ({self.hint or 'rundctl doctor'}; {ACCEPT_HINT})"

    def facts(self) -> dict[str, str]:
        """For a template's manifest."""
        return {"name": self.accelerator.value, "reason": self.reason}


def given(setting: str) -> Verdict | None:
    """The verdict of the settings, None if they leave it to us. ConfigError for a word that is none."""
    if setting not in CHOICES:
        raise ConfigError(f"settings: accelerator: expected one of {', '.join(CHOICES)}, got {setting!r}")
    return None if setting == AUTO else Verdict(Accelerator(setting), "asked for in the settings")


def without(found: Kvm, *, virtualises: bool) -> Verdict | None:
    """The verdict where there is no KVM to be tried; None if there is one.

    A processor that does not virtualise leaves nothing but a KVM that interprets: that fails, or is slower than emulation.
    """
    if not found.is_there:
        return Verdict(Accelerator.TCG, found.refusal, hint=found.hint)
    if not virtualises:
        hint = "enable VT-x or AMD-V in the firmware, or nested virtualisation where this machine is a guest itself"
        return Verdict(Accelerator.TCG, "the processor has neither vmx nor svm, which KVM needs", hint=hint)
    if found.refusal:
        return Verdict(Accelerator.TCG, found.refusal, hint=found.hint, has_fallen=True)
    return None


def recall(memo: Memo, circumstances: str) -> Verdict | None:
    """What was found by booting under the same circumstances; None if that is to be found out (again): of a KVM that did not work, in each boot of the host."""
    kept = _kept(memo, circumstances)
    if kept is None or "accelerator" not in kept:
        return None
    if kept["accelerator"] == Accelerator.KVM.value:
        return Verdict(Accelerator.KVM, kept["reason"])
    if kept.get("boot") != boot_id():
        return None
    return Verdict(Accelerator.TCG, kept["reason"], has_fallen=True, retry_s=kept["retry_s"])


def remember(memo: Memo, circumstances: str, verdict: Verdict) -> None:
    """Keep what was found by booting; of a KVM that failed, with the time of the next trial, each later than the one before."""
    answer: dict[str, Any] = {"accelerator": verdict.accelerator.value, "reason": verdict.reason}
    if verdict.accelerator is not Accelerator.KVM:
        before = _kept(memo, circumstances) or {}
        wait_s = min(2 * before["wait_s"], RETRY_MOST_S) if before.get("boot") == boot_id() else RETRY_FIRST_S
        answer |= {"boot": boot_id(), "wait_s": wait_s, "retry_s": now_s() + wait_s}
    memo.remember(_name(circumstances), answer)


def doubt(memo: Memo, circumstances: str) -> None:
    """A clone failed in KVM: nothing is known of it any more, and the template that is there does not prove that it works."""
    memo.remember(_name(circumstances), {"doubt": True})


def is_doubted(memo: Memo, circumstances: str) -> bool:
    """Whether only another boot can prove that KVM works."""
    return bool((_kept(memo, circumstances) or {}).get("doubt"))


def now_s() -> float:
    """The clock of ``retry_s``."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _name(circumstances: str) -> str:
    return f"accelerator {circumstances}"


def _kept(memo: Memo, circumstances: str) -> dict[str, Any] | None:
    kept = memo.recall(_name(circumstances))
    return kept if isinstance(kept, dict) else None
