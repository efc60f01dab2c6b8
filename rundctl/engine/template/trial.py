"""Which accelerator works here, found out by booting a guest; and what a start says and does where KVM should work and does not. Cold.

The first trial is waited for: it builds the template that the start needs. KVM that fails in it is tried again at growing intervals, in the background of a
start, which itself is emulated. KVM that boots slowly is compared with emulation: on a slow host both are slow, but a KVM that interprets its guest is
slow alone.
"""

from __future__ import annotations

import os
import sys
import time

from rundctl.engine import background
from rundctl.engine.settings import Settings
from rundctl.engine.template import builders, inputs, store
from rundctl.engine.template.clock import ClockError
from rundctl.engine.template.inputs import Request
from rundctl.errors import GuestError, HostError, RundctlError
from rundctl.host import files, memo, patience, workspace
from rundctl.types import Accelerator
from rundctl.vmm import accelerator, kvm
from rundctl.vmm.accelerator import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rundctl.engine.template.builders import Builders
    from rundctl.engine.template.inputs import Ingredients
    from rundctl.engine.template.store import Template
    from rundctl.host.memo import Memo
    from rundctl.types import Progress

    # `kernel_template._find_or_build`, which is above us
    Make = Callable[..., Template]

_NAME = "accelerator"  # of the right to try
_LOG = ".trial.log"
_WORDS_MOST = 300  # of a reason; the guest's last words are in it


def hold(ingredients: Ingredients, remembered: Memo, turns: Builders, make: Make) -> tuple[Template, Verdict]:
    """The template for the accelerator that works, and the verdict; one trial at a time. Errors are those of `kernel_template.ensure`."""
    with turns.turn(_NAME, "finds out whether KVM works"):
        remembered.refresh()
        verdict = inputs.verdict_of(ingredients, remembered)
        if verdict is None:
            return _try(ingredients, remembered, turns, make)
    return make(ingredients, verdict, remembered, turns), verdict


def as_told(ingredients: Ingredients, verdict: Verdict, remembered: Memo, turns: Builders, make: Make) -> Template:
    """The template for an accelerator that is decided. Of a KVM that the settings insist on and that boots no guest, the way out is told."""
    try:
        return make(ingredients, verdict, remembered, turns)
    except GuestError as error:
        if verdict.accelerator is Accelerator.KVM and ingredients.settings.accelerator != accelerator.AUTO:
            error.hint = "; ".join(filter(None, (error.hint, 'accelerator = "auto" finds out whether KVM works here')))
        raise


def _try(ingredients: Ingredients, remembered: Memo, turns: Builders, make: Make) -> tuple[Template, Verdict]:
    try:
        verdict = Verdict(Accelerator.KVM, "a guest booted with it")
        prove = accelerator.is_doubted(remembered, ingredients.circumstances())
        made = make(ingredients, verdict, remembered, turns, prove=prove)
        faster = _faster(ingredients, remembered, turns, make, made)
    except ClockError:  # a guest booted: KVM works, and what is remembered here is for good
        raise
    except GuestError as error:
        verdict = _fallen(f"KVM does not work here: {_shortened(str(error).removeprefix('build the template: '))}")
        turns.progress(f"KVM does not work here, trying emulation: {error}")
        made = make(ingredients, verdict, remembered, turns)
    else:
        made, verdict = faster or (made, verdict)
    accelerator.remember(remembered, ingredients.circumstances(), verdict)
    remembered.save()
    return made, verdict


def _faster(
    ingredients: Ingredients, remembered: Memo, turns: Builders, make: Make, by_kvm: Template
) -> tuple[Template, Verdict] | None:
    """An emulated guest that boots sooner than one by KVM did, which took suspiciously long; None if there is none."""
    boot_s = float(by_kvm.manifest["boot_s"])
    if boot_s <= patience.seconds(accelerator.DOUBTFUL_TIMEOUT_S):
        return None
    turns.progress(f"a guest took {boot_s:.0f} s to boot by KVM: trying whether emulation is faster")
    try:
        verdict = _fallen(f"KVM is slower here than emulation: a guest took {boot_s:.0f} s to boot by it")
        made = make(ingredients, verdict, remembered, turns, allowed_s=boot_s)
    except GuestError as error:
        turns.progress(f"KVM is faster: {error}")
        return None
    return (made, verdict) if float(made.manifest["boot_s"]) < boot_s else None


def _fallen(reason: str) -> Verdict:
    return Verdict(Accelerator.TCG, reason, has_fallen=True)


def _shortened(text: str) -> str:
    return text if len(text) <= _WORDS_MOST else f"{text[:_WORDS_MOST]} ..."


def begin(settings: Settings, remembered: Memo, request: Request, verdict: Verdict, warn: Progress) -> None:
    """Have KVM tried again in the background of a start. Raises nothing: the start goes on."""
    try:
        _begin(settings, remembered, request, verdict)
    except (HostError, OSError) as error:
        warn(f"KVM is not tried again: {error}")


def _begin(settings: Settings, remembered: Memo, request: Request, verdict: Verdict) -> None:
    """Start a trial in the background, unless there is one. The next is put off first: no other start begins one meanwhile."""
    root = store.root(settings.home)
    lock = files.lock_directory(f"{root}/.{_NAME}{workspace.SUFFIX}", wait=False)
    if lock is None:
        return
    try:
        accelerator.remember(remembered, inputs.discover(settings, request, remembered).circumstances(), verdict)
        remembered.save()
        job = {"lock": lock, "settings": _facts(settings), "request": _facts(request), "patience": patience.factor()}
        background.start(_PROGRAM, job, lock, f"{root}/{_LOG}", idle=False)
    finally:
        os.close(lock)


def explain(settings: Settings, remembered: Memo, error: GuestError) -> GuestError:
    """What to say of a clone that did not wake up by KVM, whose template proves that it did work; and see to it that `auto` goes on rightly.

    Nothing of the container had run: what KVM says is not what somebody's program made it say.
    """
    found = kvm.ask(remembered)
    is_auto = settings.accelerator == accelerator.AUTO
    ways = [
        error.hint,
        found.hint,
        "the next start is emulated" if is_auto else 'accelerator = "auto" emulates meanwhile',
    ]
    if found.refusal:  # whatever QEMU said of it was its consequence
        remembered.save()
        return GuestError(f"start the VM by KVM: {found.refusal}", hint="; ".join(filter(None, ways)))
    if kvm.NAME in error.message.lower():
        if is_auto:
            accelerator.doubt(remembered, inputs.discover(settings, Request(), remembered).circumstances())
            remembered.save()
            ways[-1] = "the next start finds out whether KVM still works"
        return GuestError(f"{kvm.DEVICE}: {error.message}", hint="; ".join(filter(None, ways)))
    return error


_PROGRAM = """
from rundctl.engine.template import kernel_template
kernel_template.try_again(job)
"""


def _facts(of: Settings | Request) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__slots__}


def run_in_background(job: dict[str, Any], make: Make) -> None:
    """What `begin` starts, with the log as stderr: boot a guest by KVM, and remember if it worked. That it did not is remembered already."""
    lock = background.keep_only(job)
    os.umask(0o077)
    patience.configured_by(lambda: int(job["patience"]))
    settings, request = Settings(), Request(**job["request"])
    for name, value in job["settings"].items():
        settings.set(name, value, "the start that began this")
    try:
        said = _try_again(settings, request, lock, make)
    except RundctlError as error:
        said = f"KVM does not work yet: {error}"
    sys.stderr.write(f"{time.strftime('%FT%TZ', time.gmtime())} {said}\n")


def _try_again(settings: Settings, request: Request, lock: int, make: Make) -> str:
    remembered = memo.of_home(settings.home)
    ingredients = inputs.discover(settings, request, remembered)
    place = f"{store.root(settings.home)}/.{_NAME}{workspace.SUFFIX}"
    verdict = Verdict(Accelerator.KVM, "a guest booted with it")
    with (
        builders.Builders(settings.home, lambda _: None) as turns,
        workspace.Workspace(place, "", lambda _: None, lock=lock),
    ):
        if ingredients.kvm.refusal:
            return f"KVM does not work yet: {ingredients.kvm.refusal}"
        made = make(ingredients, verdict, remembered, turns, prove=True)
        if _faster(ingredients, remembered, turns, make, made) is not None:
            return "KVM is still slower than emulation"
        accelerator.remember(remembered, ingredients.circumstances(), verdict)
        remembered.save()
    return "KVM works now"
