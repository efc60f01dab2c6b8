"""Kernel template: boot a lean guest once, save it after boot, start every container as a copy-on-write clone of it.

Problem
    A kernel takes half a second to several seconds to boot. And every VM that boots has its own copy of the same kernel in memory.
Mechanism
    A guest boots with its memory in a shared file. It is stopped once it has all that any container needs: the agent listens, the upper layer is
    mounted, cgroups are there, clocks are calibrated and compared with the host's. Then QEMU writes the device state. (x-ignore-shared leaves the
    memory out: that is in its file already.)
    A clone is a QEMU with the same machine. It maps the memory file privately (`MemoryMode.COW`), or copies it where virtiofsd must map it, too
    (`COPY`). Then it loads the device state.
    The key is a digest of everything that the guest and its machine are made of. Both command lines come from the same MachineShape. So a
    difference means that there is no such template, never a corrupt restore.
Cost
    Building: a boot and about a second. Disk: the memory pages that the guest touched, 0.5 MiB of state, four times 52 KiB of upper. Finding: two
    JSON files and a stat for each ingredient. A clone: some 40 ms until its agent answers under emulation, and 25 MiB of its own
    (docs/performance.md).
Invariants
    A template is complete or not there: it is built aside, then renamed. Its files never change. One that was touched or truncated is rebuilt,
    not used.
    Each key has one builder at a time, and who waits says for whom. Different keys are built at once. A guest whose clock is wrong is never saved.
    Clones of one template are the same machine until IDENTITY has told them apart.
Measured by
    make bench-template; tests/system/test_template.py (build, find, damage, concurrency, clocks), test_template_clone.py, test_small_clones.py.
"""

from __future__ import annotations

import time

from rundctl.engine.template import inputs, store
from rundctl.engine.template.inputs import Request
from rundctl.errors import GuestError, HostError, cause
from rundctl.types import Accelerator
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.settings import Settings
    from rundctl.engine.template.boot import Recipe
    from rundctl.engine.template.builders import Builders
    from rundctl.engine.template.clock import Figures
    from rundctl.engine.template.inputs import Ingredients
    from rundctl.engine.template.store import Template
    from rundctl.host.memo import Memo
    from rundctl.types import Progress
    from rundctl.vmm.accelerator import Verdict

    # The device state's name for QMP, and the devices to be plugged in beside it: what `container.vm.Vm.restore` takes.
    Saved = tuple[str, list[dict[str, str]]]

_DEFAULT = Request()


def find(
    settings: Settings, memo: Memo, request: Request = _DEFAULT, *, warn: Progress | None = None
) -> Template | None:
    """The template for this machine, if it is there and all about it is remembered. Every start comes here: no subprocess, no hashing.

    ``warn`` is told that it is one for emulation, where KVM was to be expected. HostError or ConfigError if QEMU or the kernel is missing, which `ensure`
    could not mend either.
    """
    known = inputs.known(settings, request, memo)
    if known is None:
        return None
    shape, key, verdict = known
    found = store.open_template(settings.home, key, shape)
    if found is not None:
        _tell(settings, memo, request, verdict, warn)
    return found


def _tell(settings: Settings, memo: Memo, request: Request, verdict: Verdict, warn: Progress | None) -> None:
    """Say that a start is emulated where it should not be, and have KVM tried again if it is time."""
    if not verdict.has_fallen or warn is None:
        return
    warn(verdict.warning())
    if verdict.is_due:
        from rundctl.engine.template import trial

        trial.begin(settings, memo, request, verdict, warn)


def build(directory: str, recipe: Recipe, progress: Progress) -> tuple[Figures, float]:
    """Make the files of a template: boot the guest, settle it, save it. Return how fast its clock runs, and how many seconds it took to boot. Cold.

    GuestError with the guest's last words, HostError for what the host refuses.
    """
    from rundctl.engine.template import boot

    with boot.booted(
        directory, recipe, progress
    ) as guest:  # its memory is a file, its set-up is done, its clock is right
        guest.settle()  # the agent writes out what is dirty, and drops what no clone needs
        progress("saving the guest")
        guest.save()  # this machine stops for ever; each clone goes on from here
        return guest.clock, guest.boot_s


def clone(template: Template, wiring: qemu.Wiring, state: int) -> tuple[list[str], list[int], Saved]:
    """One more machine out of a template: a QEMU that maps the memory privately and waits for its device state. `Vm.restore` loads that.

    Returns argv, the descriptors that QEMU inherits, and what is to be restored. ``state``: a descriptor of ``template.state`` with its own offset.
    """
    argv, kept = qemu.clone_argv(template.shape, wiring, state)
    return argv, kept, (qemu.state_uri(template.shape, state), qemu.plugged(wiring))


def ensure(
    settings: Settings, memo: Memo, progress: Progress, request: Request = _DEFAULT, *, warn: Progress | None = None
) -> Template:
    """The template for this machine, built if it is not there. A second caller waits and finds it. A reflink store that is not mounted is mounted first.

    ``progress`` is told each step. ``warn`` is told, if it takes long, that another process builds what we wait for; and as by `find`. HostError if the
    settings insist on a KVM that makes no virtual machine.
    """
    from rundctl.engine.template import builders, reflink_store, trial

    store.make_root(settings.home)
    reflink_store.mount_if_there(settings.home, progress)
    ingredients = inputs.discover(settings, request, memo)
    memo.save()
    if settings.accelerator == Accelerator.KVM.value and ingredients.kvm.refusal:
        raise HostError(f'accelerator = "kvm": {ingredients.kvm.refusal}', hint=ingredients.kvm.hint)
    with builders.Builders(settings.home, progress, warn) as turns:
        verdict = inputs.verdict_of(ingredients, memo)
        if verdict is None:
            found, verdict = trial.hold(ingredients, memo, turns, _find_or_build)
            _tell(settings, memo, request, verdict, warn)
            return found
        _tell(settings, memo, request, verdict, warn)
        return trial.as_told(ingredients, verdict, memo, turns, _find_or_build)


def try_again(job: dict[str, Any]) -> None:
    """Find out whether KVM works by now, in the background of a start that is emulated because it did not: what `trial.begin` has begun."""
    from rundctl.engine.template import trial

    trial.run_in_background(job, _find_or_build)


def _find_or_build(
    ingredients: Ingredients,
    verdict: Verdict,
    memo: Memo,
    turns: Builders,
    *,
    prove: bool = False,
    allowed_s: float = 0.0,
) -> Template:
    """The template for the verdict's accelerator, built if it is not there.

    ``prove``: if it is there, another guest is booted all the same, and forgotten. ``allowed_s``: how long a guest may take to boot, 0: as long as any.
    GuestError if one does not.
    """
    shape = ingredients.shape(verdict.accelerator)
    key = inputs.key_of(shape)
    home = ingredients.settings.home
    with turns.turn(key, "builds this template") as directory:
        found = store.open_template(home, key, shape)
        if found is None or prove:
            work = _Work(ingredients, verdict, directory, allowed_s)
            _build(work, memo, turns.progress, publish_it=found is None)
            found = store.open_template(home, key, shape)
    if found is None:
        raise GuestError(f"template {key}: changed while it was being built")
    return found


class _Work:
    """What is to be built, why, where, and how long its guest may take to boot (0: as long as any)."""

    __slots__ = ("allowed_s", "directory", "ingredients", "verdict")

    def __init__(self, ingredients: Ingredients, verdict: Verdict, directory: str, allowed_s: float) -> None:
        self.ingredients = ingredients
        self.verdict = verdict
        self.directory = directory
        self.allowed_s = allowed_s


def _build(work: _Work, memo: Memo, progress: Progress, *, publish_it: bool) -> None:
    from rundctl.engine.template import boot, clock, prune, publish

    started_s = time.monotonic()
    ingredients, directory = work.ingredients, work.directory
    shape = ingredients.shape(work.verdict.accelerator)
    recipe = boot.Recipe(shape, ingredients.kernel, inputs.AGENT, clock.remembered(memo), work.allowed_s)
    try:
        store.make_directories(directory)
        figures, boot_s = build(directory, recipe, progress)
        if publish_it:
            facts = {"accelerator": work.verdict.facts(), "clock": figures.facts(), "kernel": ingredients.kernel.name}
            took = {"boot_s": round(boot_s, 3), "build_s": round(time.monotonic() - started_s, 3)}
            place = f"{store.root(ingredients.settings.home)}/{inputs.key_of(shape)}"
            publish.publish(directory, place, shape, {**facts, **took})
    except OSError as error:
        raise HostError(f"build the template in {directory}: {cause(error)}") from error
    clock.remember(memo, figures)
    memo.save()
    prune.forget(ingredients.settings)
