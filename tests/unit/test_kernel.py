"""From Debian's files to a bootable kernel and its modules, on made-up files of the real formats."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from rundctl.errors import HostError
from rundctl.guest import elf, kernel, kernel_image, modules
from rundctl.host import process
from rundctl.host.memo import Memo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


def _elf(*, pvh: bool = True) -> bytes:
    """An ELF file with one PT_NOTE segment."""
    note = struct.pack("<III", 4, 8, 18 if pvh else 6) + b"Xen\0" + bytes(8)
    header = _IDENT + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return header + segment + note


def _module(modinfo: bytes) -> bytes:
    """An ELF file with a .modinfo section."""
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(modinfo) + len(names)
    header = _IDENT + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = [
        struct.pack("<IIQQQQIIQQ", *([0] * 10)),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(modinfo), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(modinfo), len(names), 0, 0, 1, 0),
    ]
    return header + modinfo + names + b"".join(sections)


def _bzimage(payload: bytes) -> bytes:
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 100, len(payload))
    return bytes(header) + bytes(100) + payload


def _tool(name: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        path = process.find_tool(name)
        if path is None:
            pytest.skip(f"{name} is not installed")
        options = ["-l"] if name == "lz4" else []
        return subprocess.run([path, *options, "-c"], input=data, capture_output=True, check=True).stdout

    return compress


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, _tool("zstd"), _tool("lz4")])
def test_vmlinux_out_of_bzimage(compress: Callable[[bytes], bytes]) -> None:
    # The kernel's build appends the unpacked size to the payload.
    vmlinux = _elf() + bytes(10000)
    size = b"" if compress is bytes else struct.pack("<I", len(vmlinux))
    assert kernel_image.vmlinux(_bzimage(compress(vmlinux) + size), "test") == vmlinux


def test_vmlinux_is_taken_as_it_is() -> None:
    assert kernel_image.vmlinux(_elf(), "test") == _elf()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "neither"),
        (b"x" * 4096, "neither"),
        (_bzimage(b"")[:1100], "truncated"),
        (_bzimage(lzma.compress(_elf()))[:-5], "truncated"),
        (_bzimage(b"\xfd7zXZ\0" + b"damaged" * 20), "decompress"),
        (_bzimage(b"not compressed, not ELF"), "not a 64-bit"),
        (_elf(pvh=False), "PVH"),
        (_elf()[:70], "truncated"),
    ],
)
def test_bad_images(image: bytes, words: str) -> None:
    with pytest.raises(HostError, match=words):
        kernel_image.vmlinux(image, "test")


def test_section() -> None:
    assert elf.section(_module(b"depends=a\0"), b".modinfo") == b"depends=a\0"
    assert elf.section(_module(b""), b".nothing") == b""
    with pytest.raises(elf.ElfError):
        elf.section(b"\x7fELF\x02\x01", b".modinfo")


def _tree(directory: Path, contents: dict[str, bytes], builtin: str = "") -> str:
    (directory / "kernel/fs").mkdir(parents=True)
    for name, data in contents.items():
        (directory / "kernel/fs" / name).write_bytes(data)
    (directory / "modules.builtin").write_text(builtin)
    return str(directory)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    tree = _tree(
        tmp_path,
        {
            "top.ko.xz": lzma.compress(_module(b"license=GPL\0depends=mid-dle,base\0softdep=pre: wished gone\0")),
            "mid-dle.ko": _module(b"depends=base\0"),
            "base.ko.gz": gzip.compress(_module(b"depends=built_in\0")),
            "wished.ko": _module(b"depends=\0"),
            "other.ko": _module(b"depends=\0"),
        },
        builtin="kernel/lib/built-in.ko\n",
    )
    assert [module.name for module in modules.resolve(tree, ("top",))] == ["wished", "base", "mid_dle", "top"]


def test_missing_module_is_named_with_its_reason(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"top.ko": _module(b"depends=gone\0")})
    with pytest.raises(HostError, match=r"kernel module gone.*top needs it"):
        modules.resolve(tree, ("top",))
    with pytest.raises(HostError, match=r"kernel module virtio_pci.*no virtio device"):
        modules.resolve(tree)


def test_versions_sort_by_value() -> None:
    names = ["6.1.0-56-amd64", "6.12.0-1-amd64", "6.1.0-9-amd64"]
    assert sorted(names, key=kernel.version_key) == ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.0-1-amd64"]


def test_no_kernel(tmp_path: Path) -> None:
    memo = Memo(str(tmp_path / "digests.json"))
    with pytest.raises(HostError, match="rundctl kernel fetch"):
        kernel.find(kernel.Choice(str(tmp_path)), memo)
    with pytest.raises(HostError, match="no guest kernel mine"):
        kernel.find(kernel.Choice(str(tmp_path), "mine"), memo)


def test_a_kernel_of_ones_own(tmp_path: Path) -> None:
    """Adopted once, found again without reading it, adopted anew when it changed."""
    image = tmp_path / "vmlinux"
    image.write_bytes(_elf())
    (tmp_path / ".config").write_text("#\nCONFIG_BLK_CGROUP=y\n#\n")
    choice = kernel.Choice(str(tmp_path / "home"), str(image))
    memo = Memo(str(tmp_path / "digests.json"))
    assert kernel.find(choice, memo) is None
    adopted = kernel.adopt(choice, memo)
    found = kernel.find(choice, memo)
    assert found is not None
    assert found.directory == adopted.directory
    assert found.manifest()["controllers"] == ["cpu", "memory", "pids", "io"]
    assert found.modules() == []
    image.write_bytes(_elf() + b"new")
    assert kernel.find(choice, memo) is None
    assert kernel.adopt(choice, memo).directory != adopted.directory
    assert sorted(name for name in os.listdir(tmp_path / "home/kernels") if name.endswith(".tmp")) == []


def test_of_adopted_kernels_the_last_stay(tmp_path: Path) -> None:
    """Who builds a kernel again and again, and names its vmlinux in the settings, fills no disk."""
    home = str(tmp_path / "home")
    memo = Memo(str(tmp_path / "digests.json"))
    kernel.install(home, "6.1.0-custom", kernel.Parts(_elf(), [], "", version="6.1.0", origin="fetched"))
    image = tmp_path / "vmlinux"
    made = []
    for number in range(6):
        image.write_bytes(_elf() + bytes([number]))
        made.append(kernel.adopt(kernel.Choice(home, str(image)), memo).name)
        os.utime(tmp_path / "home/kernels" / made[-1] / kernel.MANIFEST, (number, number))
    assert sorted(kernel.names(home)) == sorted(["6.1.0-custom", *made[2:]])
    assert not [name for name in os.listdir(tmp_path / "home/kernels") if name.endswith(".old")]
    image.write_bytes(_elf() + bytes([0]))
    assert kernel.adopt(kernel.Choice(home, str(image)), memo).name == made[0]


def test_what_a_killed_installation_left_is_no_kernel(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(_elf())
    choice = kernel.Choice(str(tmp_path / "home"), str(image))
    memo = Memo(str(tmp_path / "digests.json"))
    name = kernel.adopt(choice, memo).name
    kernels = tmp_path / "home/kernels"
    for left in (f".{name}.7.tmp", f".{name}.7.old"):
        shutil.copytree(kernels / name, kernels / left)
    assert kernel.names(str(tmp_path / "home")) == [name]
    shutil.copytree(kernels / name, kernels / "mine.old")
    (kernels / name / kernel.MANIFEST).unlink()
    kernel.adopt(choice, memo)
    assert sorted(each.name for each in kernels.iterdir() if each.is_dir()) == sorted([name, "mine.old"])
