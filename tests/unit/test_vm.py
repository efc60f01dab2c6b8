"""The VM from the host's side: what is said of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rundctl.engine import store, vm

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
