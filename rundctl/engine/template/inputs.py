"""What the wanted machine is: from settings to MachineShape and key.

Every answer is remembered beside the identity of the file it came from. `known` only recalls (a few stats, no subprocess, no hashing: it is on
the path of every start); `discover` finds out what is not remembered, and remembers it.
"""

from __future__ import annotations

import rundctl
from rundctl.errors import HostError, words
from rundctl.guest import kernel as kernels
from rundctl.host import machine
from rundctl.lean import os
from rundctl.types import Accelerator
from rundctl.vmm import accelerator, binary, kvm, qemu
from rundctl.vmm.cmdline import cmdline
from rundctl.vmm.shape import MachineShape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.settings import Settings
    from rundctl.host.memo import Memo
    from rundctl.types import TemplateKey
    from rundctl.vmm.accelerator import Verdict

AGENT = os.path.join(os.path.dirname(rundctl.__file__), "_native", "agent")


class Request:
    """What a container may ask of its machine; None leaves it to the settings. Devices as in `MachineShape`."""

    __slots__ = ("memory_mib", "root_device", "root_mib", "vcpus", "volumes")

    def __init__(
        self,
        memory_mib: int | None = None,
        vcpus: int | None = None,
        *,
        root_device: str = "9p",
        root_mib: int = 0,
        volumes: bool = False,
    ) -> None:
        self.memory_mib = memory_mib
        self.vcpus = vcpus
        self.root_device = root_device
        self.root_mib = root_mib
        self.volumes = volumes


class Ingredients:
    """All of a machine but its accelerator, which may have to be found by booting.

    ``host`` is the identity of processor and kernel, ``kvm`` what KVM is here.
    """

    __slots__ = ("binary", "digests", "host", "kernel", "kvm", "request", "settings")

    def __init__(
        self,
        settings: Settings,
        request: Request,
        kernel: kernels.Kernel,
        found: binary.Binary,
        digests: dict[str, str],
        *,
        host: str,
        found_kvm: kvm.Kvm,
    ) -> None:
        self.settings = settings
        self.request = request
        self.kernel = kernel
        self.binary = found
        self.digests = digests
        self.host = host
        self.kvm = found_kvm

    def circumstances(self) -> str:
        """What a verdict about the accelerator depends on."""
        return circumstances(self.digests["qemu"], self.host, self.kvm)

    def shape(self, chosen: Accelerator) -> MachineShape:
        """The machine with this accelerator."""
        return MachineShape(
            qemu=self.binary.path,
            qemu_version=self.binary.version,
            machine=self.binary.machine,
            accelerator=chosen,
            memory_mib=self.request.memory_mib or self.settings.memory_mib,
            vcpus=self.request.vcpus or self.settings.vcpus,
            upper_mib=0 if self.request.root_device == qemu.DISK else self.settings.upper_mib,
            digests=self.digests,
            host=_with_kvm(self.host, self.kvm) if chosen is Accelerator.KVM else self.host,
            root_device=self.request.root_device,
            root_mib=self.request.root_mib,
            volumes=self.request.volumes,
        )


def known(settings: Settings, request: Request, memo: Memo) -> tuple[MachineShape, TemplateKey, Verdict] | None:
    """Shape, key and why this accelerator, if all about them is remembered. HostError or ConfigError for what no finding out can mend (no QEMU, no kernel)."""
    found = binary.known(find_qemu(settings), memo)
    kernel = kernels.find(_choice(settings), memo)
    host = machine.known(memo)
    asked = known_kvm(settings, memo)
    if found is None or kernel is None or host is None or asked is None:
        return None
    digests = {name: memo.known_digest(path) or "" for name, path in _files(found, kernel).items()}
    if not all(digests.values()):
        return None
    ingredients = Ingredients(settings, request, kernel, found, digests, host=host, found_kvm=asked)
    verdict = verdict_of(ingredients, memo)
    if verdict is None:
        return None
    shape = ingredients.shape(verdict.accelerator)
    return shape, key_of(shape), verdict


def discover(settings: Settings, request: Request, memo: Memo) -> Ingredients:
    """Find out what is not remembered. HostError if a file cannot be read."""
    path = find_qemu(settings)
    found = binary.known(path, memo) or binary.examine(path, memo)
    choice = _choice(settings)
    kernel = kernels.find(choice, memo) or kernels.adopt(choice, memo)
    host = machine.known(memo) or machine.examine(memo)
    try:
        digests = {name: memo.digest(path) for name, path in _files(found, kernel).items()}
    except OSError as error:
        raise HostError(
            f"read {error.filename}: {words(error)}", hint="python native/build.py" if error.filename == AGENT else ""
        ) from error
    asked = known_kvm(settings, memo)
    if asked is None or (asked.refusal and asked.is_there):  # nothing here is so quick that asking once more mattered
        asked = kvm.ask(memo)
    return Ingredients(settings, request, kernel, found, digests, host=host, found_kvm=asked)


def find_qemu(settings: Settings) -> str:
    """Path of the QEMU that the settings lead to. HostError if there is none."""
    return binary.find(binary.Choice(settings.home, settings.qemu))


def able(settings: Settings, memo: Memo) -> frozenset[str]:
    """What the kernel can mount a lower layer by (`kernels.Kernel.able`), remembered."""
    choice = _choice(settings)
    kernel = kernels.find(choice, memo) or kernels.adopt(choice, memo)
    name = f"able {kernel.name}"
    known = memo.recall(name, kernel.manifest_path)
    if known is None:
        known = kernel.able()
        memo.remember(name, known, kernel.manifest_path)
        memo.save()
    return frozenset(known)


def known_kvm(settings: Settings, memo: Memo) -> kvm.Kvm | None:
    """What KVM is here, None if it must be asked. Who wants no KVM need not know."""
    return kvm.Kvm() if settings.accelerator == Accelerator.TCG.value else kvm.known(memo)


def verdict_of(ingredients: Ingredients, memo: Memo) -> Verdict | None:
    """The accelerator, if no boot is needed to tell."""
    return judge(ingredients.settings, ingredients.kvm, ingredients.circumstances(), memo)


def judge(settings: Settings, found: kvm.Kvm, circumstances: str, memo: Memo) -> Verdict | None:
    """The accelerator by what is set, by what KVM is here, and by what booting has told; None if a boot must tell."""
    return (
        accelerator.given(settings.accelerator)
        or accelerator.without(found, virtualises=machine.virtualises(memo))
        or accelerator.recall(memo, circumstances)
    )


def circumstances(qemu_digest: str, host: str, found: kvm.Kvm) -> str:
    """What a verdict about the accelerator depends on: QEMU, host kernel and processor, and what KVM shows of them."""
    return f"{qemu_digest[:16]} {_with_kvm(host, found)}"


def _with_kvm(host: str, found: kvm.Kvm) -> str:
    """What a guest that KVM runs is at home on. An emulated one knows nothing of KVM."""
    return f"{host} kvm-{found.identity}"


def key_of(shape: MachineShape) -> TemplateKey:
    """The key of a shape's template. The words for the guest's kernel are in it: nobody has to remember that they changed."""
    return shape.key(f"{qemu.ARGV_FORMAT} {cmdline(verbose=False)}")


def _choice(settings: Settings) -> kernels.Choice:
    return kernels.Choice(settings.home, settings.kernel, settings.kernel_modules)


def _files(found: binary.Binary, kernel: kernels.Kernel) -> dict[str, str]:
    """Name in the shape → path of all files the machine is made of."""
    firmware = {os.path.basename(path): path for path in found.firmware}
    return {"qemu": found.path, "agent": AGENT, "kernel": kernel.manifest_path, **firmware}
