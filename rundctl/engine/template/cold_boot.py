"""A template's machine, booted instead of cloned: for who asks for that, and to compare with.

The rest of a start is the same, and the template must be there: the boot has its kernel, and what was found out about its clock.
"""

from __future__ import annotations

from rundctl.engine.template import boot, inputs
from rundctl.guest.kernel import Kernel
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.template.store import Template
    from rundctl.guest.ops import Plan


def argv(template: Template, wiring: qemu.Wiring) -> tuple[list[str], list[int]]:
    """QEMU's command line, and the descriptors that it inherits."""
    return qemu.cold_argv(template.shape, wiring, template.tsc_khz)


def open_initramfs(template: Template) -> int:
    """The initramfs that the template was booted with, made anew. The caller closes it."""
    return boot.initramfs_fd(_kernel(template), inputs.AGENT)


def guest_setup(template: Template) -> Plan:
    """What the guest must be sent first (container 0), so that it is where a clone begins."""
    return boot.setup_plan(_kernel(template), template.shape)


def _kernel(template: Template) -> Kernel:
    return Kernel(template.kernel_directory)
