"""virtiofsd's command line in both editions, and where it is found; both were run by the system tests' suites (docs/adr/0005-virtio-fs.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.engine.rootfs import shares
from rundctl.engine.settings import Settings
from rundctl.errors import HostError
from rundctl.host.memo import Memo
from rundctl.vmm import virtiofsd
from rundctl.vmm.virtiofsd import Daemon

if TYPE_CHECKING:
    from pathlib import Path

OF_C = Daemon("/usr/lib/qemu/virtiofsd", "virtiofsd version 7.2.22 (Debian)", is_rust=False)
OF_RUST = Daemon("/usr/libexec/virtiofsd", "virtiofsd 1.13.2", is_rust=True)


def test_of_c() -> None:
    common = "source=/run/c,sandbox=namespace,xattr,posix_acl,log_level=err"
    assert OF_C.argv(7, "/run/c", fixed=True) == [
        "/usr/lib/qemu/virtiofsd", "--fd=7", "-o", f"{common},cache=always",
    ]  # fmt: skip
    assert OF_C.argv(7, "/run/c", fixed=False)[-1] == f"{common},cache=auto,timeout=0"
    assert (
        OF_C.argv(7, "/run/c", fixed=False, submounts=True)[-1] == f"{common},cache=auto,timeout=0,announce_submounts"
    )


def test_of_rust() -> None:
    common = ["/usr/libexec/virtiofsd", "--fd=7", "--shared-dir=/run/c", "--sandbox=namespace", "--posix-acl", "--log-level=error"]  # fmt: skip
    assert OF_RUST.argv(7, "/run/c", fixed=True) == [*common, "--cache=always", "--readonly", "--no-announce-submounts"]
    live = [*common, "--cache=never", "--allow-mmap"]
    assert OF_RUST.argv(7, "/run/c", fixed=False) == [*live, "--no-announce-submounts"]
    assert OF_RUST.argv(7, "/run/c", fixed=False, submounts=True) == [*live, "--announce-submounts"]


def test_a_source_is_one_word_whatever_is_in_it() -> None:
    assert OF_C.argv(7, "/a,b\\c", fixed=True)[-1].startswith("source=/a\\,b\\\\c,sandbox=")
    assert "--shared-dir=/a,b\\c" in OF_RUST.argv(7, "/a,b\\c", fixed=True)


def _program(path: Path, says: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("says", "is_rust"),
    [
        ("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg)", False),
        ("virtiofsd 1.13.2", True),
        ("virtiofsd backend 1.4.0", True),
    ],
)
def test_editions_are_told_apart_and_remembered(tmp_path: Path, says: str, is_rust: bool) -> None:
    memo = Memo(f"{tmp_path}/memo")
    program = _program(tmp_path / "daemon", says)
    assert virtiofsd.known(program, memo) is None
    assert virtiofsd.examine(program, memo).is_rust is is_rust
    found = virtiofsd.known(program, memo)
    assert found is not None
    assert (found.path, found.version, found.is_rust) == (program, says, is_rust)


def test_what_is_no_virtiofsd(tmp_path: Path) -> None:
    program = _program(tmp_path / "daemon", "GNU ls 9.1")
    with pytest.raises(HostError, match="not a virtiofsd: it says 'GNU ls"):
        virtiofsd.examine(program, Memo(f"{tmp_path}/memo"))


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "PLACES", (f"{tmp_path}/one", f"{tmp_path}/two"))
    monkeypatch.setattr(virtiofsd, "NAME", "no-virtiofsd")
    with pytest.raises(HostError, match=f"there is none: {tmp_path}/one, {tmp_path}/two and ") as caught:
        virtiofsd.find("")
    assert "apt-get install" in caught.value.hint
    assert virtiofsd.find(_program(tmp_path / "given", "")) == f"{tmp_path}/given"
    _program(tmp_path / "two", "")
    assert virtiofsd.find("") == f"{tmp_path}/two"


def test_the_settings_choose(tmp_path: Path) -> None:
    settings = Settings()
    settings.home = str(tmp_path)
    settings.virtiofsd = _program(tmp_path / "daemon", "virtiofsd 1.13.2")
    assert shares.find_daemon(settings, Memo(f"{tmp_path}/memo")).is_rust
    settings.virtiofsd = "/no/such"
    with pytest.raises(HostError, match="there is none: /no/such"):
        shares.find_daemon(settings, Memo(f"{tmp_path}/memo"))
