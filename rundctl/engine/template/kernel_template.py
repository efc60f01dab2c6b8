"""Kernel template: boot a lean guest once, save it after boot, start every container as a copy-on-write clone of it.

Problem
    Booting a kernel takes from half a second to seconds, and every VM that boots has its own copy of the same kernel in memory.
Mechanism
    The guest boots with its memory in a shared file and is stopped once it has all that any container needs: agent listening, upper layer mounted,
    cgroups there, clocks calibrated. QEMU writes the device state (x-ignore-shared leaves the memory out: it is in its file). A clone is a QEMU with the
    same machine, the memory file mapped privately (`MemoryMode.COW`), or copied where virtiofsd must map it, too (`COPY`), and the state loaded.
    The key is a digest of everything the guest and its machine are made of,
    and both command lines come from the same MachineShape: a difference is a missing template, never a corrupt restore.
Cost
    Building: a boot and about a second. Disk: the memory pages the guest touched, 0.5 MiB of state, four times 52 KiB of upper. Finding: two JSON
    files and a stat for each ingredient. A clone: some 40 ms until its agent answers under emulation, 25 MiB of its own (docs/performance.md).
Invariants
    A template is complete or not there (built aside, renamed). Its files never change: one that was touched or truncated is rebuilt, not used.
    Concurrent builders build once. Clones of one template are the same machine until IDENTITY told them apart.
Measured by
    make bench-template; tests/system/test_template.py (build, find, damage, concurrency), test_template_clone.py, test_small_clones.py.
"""

from __future__ import annotations

import os

from rundctl.engine.template import inputs, store
from rundctl.engine.template.inputs import Request
from rundctl.errors import GuestError
from rundctl.host import files
from rundctl.types import Accelerator
from rundctl.vmm import accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.settings import Settings
    from rundctl.engine.template.inputs import Ingredients
    from rundctl.engine.template.store import Template
    from rundctl.guest.kernel import Kernel
    from rundctl.guest.ops import Plan
    from rundctl.host.memo import Memo
    from rundctl.types import Progress


_DEFAULT = Request()


def find(settings: Settings, request: Request = _DEFAULT) -> Template | None:
    """The template for this machine, if it is there and all about it is remembered. The path of every start: no subprocess, no hashing.

    HostError or ConfigError for what `ensure` could not mend either: no QEMU, no kernel.
    """
    wanted = inputs.known(settings, request, inputs.open_memo(settings))
    return None if wanted is None else store.open_template(settings.home, wanted[1], wanted[0])


def able(settings: Settings) -> frozenset[str]:
    """What the kernel that the settings lead to can mount a lower layer by: "9p", "erofs", "pmem", "virtiofs". HostError if there is no kernel."""
    memo = inputs.open_memo(settings)
    return inputs.able(settings, memo)


def ensure(settings: Settings, progress: Progress, request: Request = _DEFAULT) -> Template:
    """The template for this machine, built if need be; who comes second waits and finds it. A reflink store that is not mounted gets mounted."""
    from rundctl.engine.template import reflink_store

    store.make_root(settings.home)
    reflink_store.mount_if_there(settings.home, progress)
    memo = inputs.open_memo(settings)
    ingredients = inputs.discover(settings, request, memo)
    memo.save()
    with files.Lock(f"{store.root(settings.home)}/.lock"):
        found = find(settings, request)
        return found if found is not None else _choose_and_build(ingredients, progress)


def _choose_and_build(ingredients: Ingredients, progress: Progress) -> Template:
    """Build with the accelerator that works; which one that is may only come out by trying."""
    memo = inputs.open_memo(ingredients.settings)
    verdict = inputs.verdict_of(ingredients, memo)
    if verdict is None:
        verdict = accelerator.Verdict(Accelerator.KVM, "a guest booted with it")
        try:
            return _build(ingredients, verdict, memo, progress)
        except GuestError as error:
            verdict = accelerator.Verdict(Accelerator.TCG, f"KVM does not work here: {error}")
            progress(f"KVM does not work here, trying emulation: {error}")
    return _build(ingredients, verdict, memo, progress)


def _build(ingredients: Ingredients, verdict: accelerator.Verdict, memo: Memo, progress: Progress) -> Template:
    from rundctl.engine.template import build

    shape = ingredients.shape(verdict.accelerator)
    key = inputs.key_of(shape)
    home = ingredients.settings.home
    found = store.open_template(home, key, shape)
    if found is None:
        recipe = build.Recipe(shape, ingredients.kernel, inputs.AGENT, verdict.reason)
        build.build(home, key, recipe, progress)
        found = store.open_template(home, key, shape)
    if found is None:
        raise GuestError(f"template {key}: changed while it was being built")
    accelerator.remember(memo, ingredients.circumstances(), verdict)
    memo.save()
    return found


def make_memory(template: Template) -> int:
    """A file for one guest's memory, empty: for a clone that gets a copy of the template's, or a cold boot. The caller closes it."""
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, template.shape.memory_mib << 20)
    return fd


def open_initramfs(template: Template) -> int:
    """The initramfs that the template was booted with, made anew: for a cold boot."""
    from rundctl.engine.template import build

    return build.initramfs_fd(_kernel(template), inputs.AGENT)


def guest_setup(template: Template) -> Plan:
    """What a cold-booted guest must be sent first (container 0), so that it is where a clone begins."""
    from rundctl.engine.template import build

    return build.setup_plan(_kernel(template), template.shape)


def _kernel(template: Template) -> Kernel:
    from rundctl.guest.kernel import Kernel

    return Kernel(template.kernel_directory)
