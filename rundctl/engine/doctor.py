"""What this host has for running containers, and how to mend what it lacks. Cold.

Every fact comes from the module that `create` itself asks, so a finding is what a start will meet. Nothing is changed but for scratch files
without a name; what is dear to find out and is not remembered (whether KVM works) is said to be unknown, not tried.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rundctl.engine import settings
from rundctl.engine.cgroups import upkeep
from rundctl.engine.plan import seccomp
from rundctl.engine.rootfs.images import store as images
from rundctl.engine.template import clock, inputs, reflink_store
from rundctl.engine.template import store as template_store
from rundctl.errors import HostError, RundctlError, words
from rundctl.guest import kernel
from rundctl.host import cgroupfs, ficlone, machine, native, process
from rundctl.host import memo as memos
from rundctl.types import Accelerator
from rundctl.vmm import accelerator, binary, kvm, qemu, qemu_build, virtiofsd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rundctl.engine.settings import Settings

    Check = Callable[[Settings], Iterator["Finding"]]

_GUEST_CONTROLLERS = ("cpu", "memory", "pids")  # what containers are limited by
_TOOLS = (("mkfs.ext4", "e2fsprogs"), ("setpriv", "util-linux"))
_CONMON = ("conmon", "/usr/libexec/podman/conmon", "/usr/lib/podman/conmon")
_CONTAINERS_CONF = (
    "/usr/share/containers/containers.conf",
    "/etc/containers/containers.conf",
    "/etc/containers/containers.conf.d",
)
# At 1.2 MiB 200 copies at once took twice as long as 200 reflinks, at 52 KiB about as long (docs/rootfs.md).
_STORE_PAYS_KIB = 1024
_FASTER = "with KVM guests run many times faster"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Level(StrEnum):
    """How much a finding matters: ``fail`` keeps containers from starting, ``warn`` makes them slower, heavier or less safe."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report; the hint says how to mend it."""

    subject: str
    level: Level
    text: str
    hint: str = ""


def examine() -> list[Finding]:
    """All findings, in an order in which they can be mended. Raises nothing: what goes wrong is a finding."""
    found: list[Finding] = []
    try:
        chosen = settings.load()
        found.append(Finding("settings", Level.OK, f"RUNDCTL_HOME is {chosen.home}"))
    except RundctlError as error:
        chosen = settings.Settings()
        found.append(_failure("settings", error))
    return found + [finding for subject, check in CHECKS for finding in _run(subject, check, chosen)]


def _run(subject: str, check: Check, chosen: Settings) -> list[Finding]:
    """A check's findings; one that failed itself is one more."""
    found: list[Finding] = []
    try:
        found.extend(check(chosen))
    except RundctlError as error:
        found.append(_failure(subject, error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        found.append(Finding(subject, Level.FAIL, f"{where}{words(error)}"))
    return found


def _failure(subject: str, error: RundctlError) -> Finding:
    return Finding(subject, Level.FAIL, error.message, error.hint)


def _user(_: Settings) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("user", Level.OK, "root")
    else:
        yield Finding("user", Level.FAIL, f"uid {os.geteuid()} is not root", "sudo rundctl doctor")


def _processor(_: Settings) -> Iterator[Finding]:
    name, flags = machine.processor()
    if os.uname().machine != "x86_64":
        yield Finding("processor", Level.FAIL, f"{os.uname().machine} is not supported", "an x86-64 host")
        return
    virtual = flags & {"vmx", "svm"}
    if virtual:
        yield Finding("processor", Level.OK, f"{name}: {', '.join(sorted(virtual))}")
    else:
        hint = "enable VT-x or AMD-V in the firmware, or nested virtualisation where this machine is a guest itself"
        yield Finding("processor", Level.WARN, f"{name}: neither vmx nor svm: do not expect KVM to work", hint)


def _native(_: Settings) -> Iterator[Finding]:
    paths = [native.program(name) for name in ("agent", "shim")]
    yield Finding("programs", Level.OK, " ".join(paths))


def _tools(_: Settings) -> Iterator[Finding]:
    for name, package in _TOOLS:
        yield Finding("tools", Level.OK, process.need_tool(name, f"apt-get install {package}"))


def _qemu(chosen: Settings) -> Iterator[Finding]:
    memo = memos.of_home(chosen.home)
    path = inputs.find_qemu(chosen)
    found = binary.known(path, memo) or binary.examine(path, memo)
    what = f"{path} {_version(found.version)}, machine {found.machine}"
    if qemu.maps_memory_read_only(found.version):
        yield Finding("qemu", Level.OK, what)
        return
    text = "it cannot map a template's memory read-only, and holds a descriptor to it for writing (docs/security.md)"
    yield Finding(
        "qemu", Level.WARN, f"{what}: {text}", "8.2 can: qemu-system-x86 of Debian 13 or of bookworm-backports"
    )


def _lean_qemu(chosen: Settings) -> Iterator[Finding]:
    """A lean QEMU is nobody's package: it is for us to say that its source has been mended since."""
    path = inputs.find_qemu(chosen)
    name = next((name for name in binary.names(chosen.home) if binary.program(chosen.home, name) == path), "")
    if not name:
        text = "of the host: a lean one starts sooner and needs less memory in each container"
        yield Finding("qemu", Level.OK, text, "rundctl qemu build")
        return
    built = binary.manifest(chosen.home, name)["version"]
    newest = qemu_build.candidate()
    if built == newest:
        yield Finding("qemu", Level.OK, f"lean, of Debian's source {built}")
    else:
        yield Finding("qemu", Level.WARN, f"lean, of Debian's source {built}; {newest} is there", "rundctl qemu build")


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _accelerator(chosen: Settings) -> Iterator[Finding]:
    memo = memos.of_home(chosen.home)
    found = kvm.ask(memo)  # what was remembered may be a minute old
    if chosen.accelerator == Accelerator.KVM.value and found.refusal:
        raise HostError(f'accelerator = "kvm": {found.refusal}', hint=found.hint)
    host = machine.known(memo) or machine.examine(memo)
    digest = memo.digest(inputs.find_qemu(chosen))
    verdict = inputs.judge(chosen, found, inputs.circumstances(digest, host, found), memo)
    if verdict is None:
        text = f"not known yet: {kvm.DEVICE} makes virtual machines, but only booting a guest tells whether it works"
        yield Finding("accelerator", Level.WARN, text, "rundctl template build")
    elif verdict.accelerator is Accelerator.KVM:
        yield Finding("accelerator", Level.OK, f"kvm: {verdict.reason}")
        yield _tested(chosen, memo)
    elif chosen.accelerator == Accelerator.TCG.value:
        yield Finding("accelerator", Level.WARN, f"tcg (emulation): {verdict.reason}", _FASTER)
    else:
        yield Finding("accelerator", Level.WARN, f"tcg (emulation): {verdict.reason}", verdict.hint or _retry(verdict))


def _tested(chosen: Settings, memo: memos.Memo) -> Finding:
    """What of KVM the developers have seen, beside what this host has."""
    extension = "Intel's VMX" if "vmx" in machine.processor()[1] else "AMD's SVM"
    path = inputs.find_qemu(chosen)
    version = _version((binary.known(path, memo) or binary.examine(path, memo)).version)
    here = f"here are {extension}, Linux {os.uname().release}, QEMU {version}"
    text = f"KVM was tested in an emulated machine only, with AMD's SVM, Linux 6.1 and QEMU 7.2; {here}"
    return Finding("accelerator", Level.OK, text, "rundctl doctor --bench prints a table for a report")


def _retry(verdict: accelerator.Verdict) -> str:
    """When KVM that failed is tried again."""
    minutes = max(0.0, verdict.retry_s - accelerator.now_s()) / 60
    when = f"it is tried again by a create in {minutes:.0f} minutes" if minutes else "the next create tries it again"
    return f"{_FASTER}; {when}, or after a reboot; {accelerator.ACCEPT_HINT}"


def _kernel(chosen: Settings) -> Iterator[Finding]:
    there = kernel.names(chosen.home)
    choice = kernel.Choice(chosen.home, chosen.kernel, chosen.kernel_modules)
    found = kernel.find(choice, memos.of_home(chosen.home))
    if found is None:
        text = f"{chosen.kernel} (from the settings) has not been taken over yet"
        yield Finding("kernel", Level.WARN, text, "rundctl template build")
        return
    found.manifest()
    others = [name for name in there if name != found.name]
    yield Finding("kernel", Level.OK, f"{found.name}{', and ' + ', '.join(others) if others else ''}")


def _reflinks(chosen: Settings) -> Iterator[Finding]:
    if not os.path.isdir(chosen.home):
        yield Finding("reflink", Level.WARN, f"{chosen.home} is missing", "rundctl kernel fetch makes it")
        return
    image, templates = reflink_store.image_path(chosen.home), template_store.root(chosen.home)
    if os.path.exists(image) and not reflink_store.is_mounted(chosen.home):
        text = f"{image}, the reflink store, is not mounted: the next create does it, or says why it cannot"
        yield Finding("reflink", Level.WARN, text, "rundctl storage mount")
        return
    place = templates if os.path.isdir(templates) else chosen.home
    if ficlone.works_in(place):
        text = f"{place} shares extents between files: an upper layer costs one ioctl"
        yield Finding("reflink", Level.OK, text)
        return
    copied_kib = max((_upper_kib(f"{templates}/{each.key}") for each in template_store.entries(chosen.home)), default=0)
    pays = copied_kib >= _STORE_PAYS_KIB
    much = f"the {copied_kib} KiB" if copied_kib else "the data"
    verdict = "a reflink store pays" if pays else f"a reflink store pays from {_STORE_PAYS_KIB} KiB on"
    text = f"{place} cannot share extents: each start copies {much} of its upper layer; {verdict}"
    yield Finding("reflink", Level.WARN if pays else Level.OK, text, "rundctl storage init makes one")


def _upper_kib(directory: str) -> int:
    try:
        return os.stat(f"{directory}/{template_store.UPPERS[0]}").st_blocks // 2
    except FileNotFoundError:
        return 0


def _templates(chosen: Settings) -> Iterator[Finding]:
    entries = template_store.entries(chosen.home)
    current = _current_key(chosen)
    if not any(entry.intact and entry.key == current for entry in entries):
        text = "none for the present settings: the first create builds it"
        yield Finding("template", Level.WARN, text, "rundctl template build")
    for entry in entries:
        what = f"{entry.key} {entry.size_mib} MiB{_clock(entry)}"
        if not entry.intact:
            hint = "rundctl template build rebuilds the present one, rundctl template prune removes the others"
            yield Finding("template", Level.WARN, f"{what}: damaged, will not be used", hint)
            continue
        mine = entry.key == current
        yield Finding("template", Level.OK, f"{what}{', used by the next create' if mine else ''}")
    yield from _exposed(template_store.root(chosen.home))


def _clock(entry: template_store.Entry) -> str:
    """How far off it may be: it was compared with the host's before the template was saved."""
    found = clock.facts_of(entry.manifest)
    if not found:
        return ""
    return f", its clock right within {max(1 - found['rate_least'], found['rate_most'] - 1):.1%}"


def _images(chosen: Settings) -> Iterator[Finding]:
    tool = process.find_tool("mkfs.erofs")
    if tool is None:
        text = "mkfs.erofs is missing: root file systems cannot become EROFS images, all come by 9p"
        yield Finding("images", Level.WARN, text, "apt-get install erofs-utils")
    found = images.entries(chosen.home)
    size_mib = sum(entry.size_mib for entry in found)
    yield Finding(
        "images", Level.OK, f"{len(found)} with {size_mib} MiB, of {chosen.images_max_mib} that they may take"
    )
    for entry in found:
        if entry.state == "damaged":
            hint = "rundctl image prune removes it; the next start makes it anew"
            yield Finding("images", Level.WARN, f"{entry.key}: damaged, will not be used", hint)


def _virtiofsd(chosen: Settings) -> Iterator[Finding]:
    """What nobody has asked for need not be there."""
    try:
        path = virtiofsd.find(chosen.virtiofsd)
    except HostError:
        if chosen.virtiofsd or chosen.lower == "virtiofs":
            raise
        yield Finding(
            "virtiofsd", Level.OK, "not installed; only root file systems by virtio-fs need it", virtiofsd.HINT
        )
        return
    memo = memos.of_home(chosen.home)
    found = virtiofsd.known(path, memo) or virtiofsd.examine(path, memo)
    yield Finding("virtiofsd", Level.OK, f"{found.path}: {found.version}")


def _current_key(chosen: Settings) -> str | None:
    """Of the template that the settings lead to. Not through `kernel_template.find`, which notes the template's use."""
    try:
        known = inputs.known(chosen, inputs.Request(), memos.of_home(chosen.home))
    except RundctlError:
        return None  # why is told by the checks of QEMU and kernel
    return None if known is None else known[1]


def _exposed(root: str) -> Iterator[Finding]:
    """Whoever can read a template can read every clone's first secrets; whoever can write to it owns them."""
    try:
        status = os.stat(root)
    except FileNotFoundError:
        return
    if status.st_uid != 0:
        yield Finding("template", Level.FAIL, f"{root} belongs to uid {status.st_uid}", f"chown 0:0 {root}")
    elif status.st_mode & _OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding("template", Level.WARN, f"{root} is open to others (mode {mode:04o})", f"chmod 0700 {root}")


def _cgroups(_: Settings) -> Iterator[Finding]:
    found = cgroupfs.hierarchies()
    if not found:
        raise HostError("no writable cgroup hierarchy is mounted", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    unified = next((each for each in found if each.is_v2), None)
    mounted = {name for each in found if not each.is_v2 for name in each.controllers}
    version = "v2" if unified and len(found) == 1 else "v1 and v2" if unified else "v1"
    there = mounted | _v2_controllers(unified)
    missing = [name for name in _GUEST_CONTROLLERS if name not in there]
    text = f"{version}, {len(found)} hierarch{'y' if len(found) == 1 else 'ies'}: {' '.join(sorted(there))}"
    if missing:
        hint = "systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
        yield Finding("cgroup", Level.WARN, f"{text}; without {', '.join(missing)}", hint)
    else:
        yield Finding("cgroup", Level.OK, text)
    yield from _favordynmods(found)


def _v2_controllers(hierarchy: cgroupfs.Hierarchy | None) -> set[str]:
    if hierarchy is None:
        return set()
    with open(f"{hierarchy.directory}/cgroup.controllers", encoding="ascii") as file:
        return set(file.read().split())


def _favordynmods(found: list[cgroupfs.Hierarchy]) -> Iterator[Finding]:
    """Without it each move of a process into a cgroup waits for an RCU grace period (cgroup-v2.rst)."""
    plain = [each.directory for each in found if "favordynmods" not in each.controllers]
    if not plain:
        yield Finding("cgroup", Level.OK, "favordynmods is on: processes join cgroups at once")
        return
    hint = f"mount -o remount,favordynmods {plain[0]} (Linux 6.0)"
    yield Finding(
        "cgroup", Level.OK, f"favordynmods is off in {len(plain)}: joining a cgroup may wait for the kernel", hint
    )


def _pools(_: Settings) -> Iterator[Finding]:
    """Cgroups made ahead, and slots of the dead, which the next fill takes back."""
    found = upkeep.status()
    if not found:
        yield Finding("pool", Level.OK, "none: cgroups are made on the spot", "rundctl pool fill makes some ahead")
    for pool in found:
        text = f"{pool['parent']}: {pool['free']} slots are free, {pool['leased']} leased"
        if pool["orphaned"]:
            text = f"{text}; the owner of {pool['orphaned']} is dead"
            yield Finding("pool", Level.WARN, text, f"rundctl pool fill --parent {pool['parent']} takes them back")
        else:
            yield Finding("pool", Level.OK, text if pool["open"] else f"{text}; it is drained")


def _seccomp(_: Settings) -> Iterator[Finding]:
    seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"})
    yield Finding("seccomp", Level.OK, "libseccomp compiles profiles")


def _podman(_: Settings) -> Iterator[Finding]:
    path = process.find_tool("podman")
    if path is None:
        yield Finding("podman", Level.OK, "not installed; nothing else needs it", "apt-get install podman")
        return
    version = process.run([path, "--version"], what="ask podman for its version").decode().split()[-1]
    conmon = next((tool for tool in map(process.find_tool, _CONMON) if tool), None)
    if conmon is None:
        yield Finding("podman", Level.WARN, f"{path} {version}, without conmon", "apt-get install conmon")
        return
    yield Finding("podman", Level.OK, f"{path} {version}, {conmon}")
    yield _drop_in(_CONTAINERS_CONF)


def _drop_in(places: tuple[str, ...]) -> Finding:
    for path in _configurations(places):
        with open(path, "rb") as file:
            engine = tomllib.load(file).get("engine", {})
        programs = engine.get("runtimes", {}).get("rundctl")
        if programs is None:
            continue
        program = next((each for each in programs if os.access(each, os.X_OK)), None)
        if program is not None:
            return Finding("podman", Level.OK, f"{path}: --runtime rundctl is {program}")
        text = f"{path}: none of {', '.join(programs)} is there"
        return Finding("podman", Level.WARN, text, "name rundctl's path in that file")
    hint = "docs/examples/podman-rundctl.conf belongs in /etc/containers/containers.conf.d"
    return Finding("podman", Level.WARN, "does not know rundctl by name, only by path", hint)


def _configurations(places: tuple[str, ...]) -> list[str]:
    """containers.conf(5): files in their order, a directory's by name; the last that says something wins, so it comes first here."""
    found: list[str] = []
    for place in places:
        if os.path.isdir(place):
            found += sorted(f"{place}/{name}" for name in os.listdir(place) if name.endswith(".conf"))
        elif os.path.exists(place):
            found.append(place)
    return found[::-1]


CHECKS: tuple[tuple[str, Check], ...] = (
    ("user", _user),
    ("processor", _processor),
    ("programs", _native),
    ("tools", _tools),
    ("qemu", _qemu),
    ("qemu", _lean_qemu),
    ("accelerator", _accelerator),
    ("kernel", _kernel),
    ("reflink", _reflinks),
    ("template", _templates),
    ("images", _images),
    ("virtiofsd", _virtiofsd),
    ("cgroup", _cgroups),
    ("pool", _pools),
    ("seccomp", _seccomp),
    ("podman", _podman),
)
