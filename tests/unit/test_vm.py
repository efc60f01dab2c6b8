"""The VM from the host's side: what is said of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rundctl.engine.container import vm
from rundctl.engine.records import store

if TYPE_CHECKING:
    from pathlib import Path

LINE_MAX = 1024


def test_last_words_are_qemus_last_line_and_bounded(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    assert vm.with_last_words("create", container) == "create"
    (tmp_path / "exit").write_text("detail=qemu exited with status 1\n")
    (tmp_path / "qemu.log").write_bytes(b"first\n" * 1000 + b"qemu: no such \xff device\n")
    said = vm.with_last_words("create", container)
    assert said == "create: qemu exited with status 1: qemu: no such \N{REPLACEMENT CHARACTER} device"
    (tmp_path / "qemu.log").write_bytes(b"x" * 100_000)
    assert vm.with_last_words("create", container) == f"create: qemu exited with status 1: {'x' * LINE_MAX}"


def test_of_a_panic_it_is_said_why(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    (tmp_path / "exit").write_text("reason=qemu\ndetail=qemu exited with status 0\n")
    assert container.sudden_end() == "qemu exited with status 0"
    said = (
        b"[    1.0] Kernel panic - not syncing: old\r\n[    1.5] Kernel panic - not syncing: no \x1b[2J memory\r\n"
        b"[    1.5] Kernel Offset: disabled\r\n[    1.5] ---[ end Kernel panic - not syncing: no \x1b[2J memory ]---\r\n"
    )
    (tmp_path / "qemu.log").write_bytes(b"x" * 50000 + said)
    why = "qemu exited with status 0: the guest's kernel panicked: no ?[2J memory"
    assert container.sudden_end() == why
    assert vm.with_last_words("create", container) == f"create: {why}"
    (tmp_path / "qemu.log").write_bytes(b"[    1.0] int3: 0000 [#1] SMP NOPTI\r\n" + said)
    assert container.sudden_end() == f"{why} (int3: 0000 [#1] SMP NOPTI)"
    (tmp_path / "exit").write_text("reason=container\ndetail=\n")
    assert container.sudden_end() == ""  # it ended, whatever its guest did then


def test_what_a_guest_s_kernel_says_while_all_is_well_is_not_the_reason(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    (tmp_path / "qemu.log").write_bytes(b"[    1.3] Failed to set sysctl parameter 'a=0': parameter not found\r\n")
    assert vm.with_last_words("create", container) == "create"
    (tmp_path / "qemu.log").write_bytes(
        b"[    1.3] rundctl agent: open the port: No such device\r\n[    1.4] reboot: Restarting\r\n"
    )
    assert container.last_words() == "[    1.3] rundctl agent: open the port: No such device"
