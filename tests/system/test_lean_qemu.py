"""The lean QEMU has what rundctl's command lines name and no more, is one static program at addresses of its own, and costs each clone less.

tools/setup has built it, and it is the default of all other suites; what builds a second one is tests/rebuild.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.vmm import binary, qemu_build

from .conftest import RUNDCTL, Cli, JsonDict
from .test_small_clones import Clone, _memory_of, smaps

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm
BUILD_S = 3600
HOME = settings.load().home
VIRTIO = {f"virtio-{name}-pci" for name in ("9p", "blk", "net", "pmem", "rng", "serial")} | {"vhost-user-fs-pci"}
ET_DYN, PT_INTERP, PT_DYNAMIC = 3, 3, 2
ELF_HEADER, PROGRAM_HEADER = "<16xHHIQQQIHHH", "<II"  # up to e_phnum; p_type, p_flags: elf(5)


@pytest.fixture(scope="module")
def lean() -> str:
    """Path of the lean QEMU of Debian's present version; the command builds it if nobody has yet."""
    before = binary.current(HOME)
    argv = [RUNDCTL, "qemu", "build", "--keep-default"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=BUILD_S, text=True, check=True)
    assert binary.current(HOME) == before
    path = done.stdout.strip()
    assert path == binary.program(HOME, qemu_build._recipe().name())
    return path


def _name(path: str) -> str:
    return Path(path).parent.name


def _ask(program: str, *question: str) -> str:
    return subprocess.run([program, *question], capture_output=True, text=True, check=True).stdout


def _devices(program: str) -> dict[str, list[str]]:
    """Heading of ``-device help`` → names below it. Models of processors are no devices to attach."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _ask(program, "-device", "help").splitlines():
        name = re.match(r'name "([^"]+)"', line)
        if name:
            found[heading].append(name[1])
        elif line:
            heading = line.removesuffix(":")
            found[heading] = []
    assert found.pop("CPU devices")
    return found


def test_it_is_the_default(lean: str) -> None:
    assert binary.current(HOME) == _name(lean)
    assert binary.find(binary.Choice(HOME)) == lean


def test_all_our_patches_are_in_it(lean: str) -> None:
    manifest = json.loads((Path(lean).parent / binary.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["patches"] == [os.path.basename(path) for path in qemu_build.patches(manifest["version"])]


def test_it_has_the_devices_of_the_list_and_no_other(lean: str) -> None:
    devices = _devices(lean)
    everything = [name for names in devices.values() for name in names]
    paravirtual = {name for name in everything if re.match(r"(virtio|vhost)-.*-pci$", name)}
    assert paravirtual == VIRTIO
    assert all(name.startswith("virtio-net-") for name in devices["Network devices"])
    assert set(devices) & {"USB devices", "Sound devices"} == set()
    assert {"pcie-root-port", "virtserialport", "vmgenid", "pc-dimm"} <= set(everything)
    assert 4 * len(everything) < sum(map(len, _devices(binary.find(binary.Choice(HOME, binary.SYSTEM))).values()))


def test_it_emulates_one_machine(lean: str) -> None:
    machines = [line.split()[0] for line in _ask(lean, "-machine", "help").splitlines()[1:]]
    assert {re.sub(r"-\d.*", "", name) for name in machines} <= {"q35", "pc-q35", "none", "x-remote"}


def test_it_is_static_and_position_independent(lean: str) -> None:
    image = Path(lean).read_bytes()
    kind, _, _, _, table, _, _, _, size, count = struct.unpack_from(ELF_HEADER, image)
    headers = {struct.unpack_from(PROGRAM_HEADER, image, table + number * size)[0] for number in range(count)}
    assert kind == ET_DYN
    assert PT_INTERP not in headers
    assert PT_DYNAMIC in headers


def test_it_lies_elsewhere_in_each_clone(cli: Cli, bundle, lean: str, configure: Callable[..., None]) -> None:
    configure(qemu=_name(lean))
    where = bundle("/bin/sleep", "1000")
    clones = [Clone(cli, f"at{number}", where) for number in range(3)]
    assert {os.readlink(f"/proc/{clone.qemu}/exe") for clone in clones} == {lean}
    first = [Path(f"/proc/{clone.qemu}/maps").read_text().partition("-")[0] for clone in clones]
    assert len(set(first)) == len(clones)


def test_a_clone_is_restored_with_bind_mount_and_stdin(
    sh, lean: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(qemu=_name(lean))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "in").write_text("from the host\n")

    def change(config: JsonDict) -> None:
        config["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(shared), "options": ["rbind"]})

    done = sh("cat /mnt/in -; echo from the guest >/mnt/out; exit 7", code=7, stdin=b"from stdin\n", change=change)
    assert done.stdout == b"from the host\nfrom stdin\n"
    assert (shared / "out").read_text() == "from the guest\n"


def test_its_template_names_it(cli: Cli, lean: str, configure: Callable[..., None]) -> None:
    configure(qemu=_name(lean))
    key = cli("template", "build").stdout.decode().strip()
    assert json.loads(cli("template", "show", key).stdout)["shape"]["qemu"] == lean


def test_a_clone_is_smaller_than_the_host_s(cli: Cli, bundle, lean: str, configure: Callable[..., None]) -> None:
    where = bundle("/bin/sleep", "1000")
    parts, pss = {}, {}
    for name in (binary.SYSTEM, _name(lean)):
        configure(qemu=name)
        clone = Clone(cli, f"of-{name[:3]}", where)
        parts[name] = smaps.breakdown_kib(clone.qemu, _memory_of(clone))
        pss[name] = smaps.pss_kib(clone.qemu)
        cli("delete", "--force", f"of-{name[:3]}")
    stock, ours = parts[binary.SYSTEM], parts[_name(lean)]
    assert 2 * ours["relocations, data"] < stock["relocations, data"], parts
    # What is QEMU's own; the guest is the same, and so is the code that it has TCG translate.
    own = ("heap, anonymous", "relocations, data", "files, shared")
    assert 1.2 * sum(ours[part] for part in own) < sum(stock[part] for part in own), parts
    assert pss[_name(lean)] < pss[binary.SYSTEM], pss


def test_use_and_list(lean: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "qemu").mkdir(parents=True)
    for name in binary.names(HOME):
        (home / "qemu" / name).symlink_to(f"{HOME}/qemu/{name}")
    environment = {**os.environ, "RUNDCTL_HOME": str(home)}

    def rows() -> list[list[str]]:
        argv = [RUNDCTL, "qemu", "list"]
        listed = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout
        return [line.split() for line in listed.splitlines()[1:]]

    assert [row[0] for row in rows() if row[1:] == ["default"]] == ["system"]
    for name in (_name(lean), "system"):
        subprocess.run([RUNDCTL, "qemu", "use", name], env=environment, check=True)
        assert [row[0] for row in rows() if row[1:] == ["default"]] == [name]
    assert {row[0] for row in rows()} == {"system", *binary.names(HOME)}


def test_use_of_what_is_not_there(tmp_path: Path) -> None:
    environment = {**os.environ, "RUNDCTL_HOME": str(tmp_path)}
    argv = [RUNDCTL, "qemu", "use", "7.2-lean-0"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"rundctl: no QEMU 7.2-lean-0 in {tmp_path}/qemu (there are: none; rundctl qemu build)\n"
