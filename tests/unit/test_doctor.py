from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rundctl.commands import doctor as command
from rundctl.commands.declare import Options
from rundctl.engine import doctor
from rundctl.engine.doctor import Finding, Level
from rundctl.engine.settings import Settings
from rundctl.engine.template import store
from rundctl.errors import HostError
from rundctl.host.cgroupfs import Hierarchy
from rundctl.types import Accelerator
from rundctl.vmm import accelerator, binary, virtiofsd
from rundctl.vmm.accelerator import Verdict
from rundctl.vmm.kvm import Kvm


def _of(check: doctor.Check, home: Path) -> list[Finding]:
    settings = Settings()
    settings.home = str(home)
    return doctor._run("subject", check, settings)


def _options(*on: str) -> Options:
    return Options({}, set(on), print, print, print)


@pytest.mark.parametrize(
    ("error", "text", "hint"),
    [
        (HostError("no luck", hint="try again"), "no luck", "try again"),
        (FileNotFoundError(2, "No such file", "/x"), "/x: is missing", ""),
        (PermissionError(13, "Permission denied"), "permission denied", ""),
    ],
)
def test_a_check_that_fails_is_a_finding(tmp_path: Path, error: Exception, text: str, hint: str) -> None:
    def check(_: Settings):
        yield Finding("subject", Level.OK, "before")
        raise error

    assert _of(check, tmp_path) == [
        Finding("subject", Level.OK, "before"),
        Finding("subject", Level.FAIL, text, hint),
    ]


def test_a_bug_is_not_hidden(tmp_path: Path) -> None:
    def check(_: Settings):
        yield Finding("subject", Level.OK, str(1 // 0))

    with pytest.raises(ZeroDivisionError):
        _of(check, tmp_path)


def test_virtiofsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missed where it is asked for, and told otherwise."""
    settings = Settings()
    settings.home = str(tmp_path)
    program = tmp_path / "virtiofsd"
    program.write_text("#!/bin/sh\necho virtiofsd 1.13.2\n")
    program.chmod(0o755)
    settings.virtiofsd = str(program)
    (found,) = doctor._run("virtiofsd", doctor._virtiofsd, settings)
    assert (found.level, found.text) == (Level.OK, f"{program}: virtiofsd 1.13.2")
    settings.virtiofsd = ""
    monkeypatch.setattr(virtiofsd, "PLACES", ())
    monkeypatch.setattr(virtiofsd, "NAME", "no-virtiofsd")
    (found,) = doctor._run("virtiofsd", doctor._virtiofsd, settings)
    assert (found.level, found.hint) == (Level.OK, virtiofsd.HINT)
    settings.lower = "virtiofs"
    (found,) = doctor._run("virtiofsd", doctor._virtiofsd, settings)
    assert (found.level, found.hint) == (Level.FAIL, virtiofsd.HINT)


def test_nothing_of_a_bare_home_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNDCTL_HOME", str(tmp_path / "none"))
    found = {finding.subject: finding for finding in doctor.examine()}
    assert set(found) == {"settings", *(subject for subject, _ in doctor.CHECKS)}
    assert found["kernel"].level is Level.FAIL
    assert found["kernel"].hint == "rundctl kernel fetch"
    assert found["reflink"].level is Level.WARN
    assert not (tmp_path / "none").exists()


def test_bad_settings_do_not_end_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("memory_mib = 1\n")
    monkeypatch.setenv("RUNDCTL_CONFIG", str(tmp_path / "config.toml"))
    found = doctor.examine()
    assert found[0].level is Level.FAIL
    assert "memory_mib" in found[0].text
    assert len(found) > len(doctor.CHECKS)


def test_no_qemu_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rundctl.host.process.TOOL_DIRECTORIES", (str(tmp_path),))
    (found,) = _of(doctor._qemu, tmp_path)
    assert (found.level, found.hint) == (Level.FAIL, "apt-get install qemu-system-x86")


@pytest.mark.parametrize(("version", "level"), [((7, 2), Level.WARN), ((8, 1), Level.WARN), ((8, 2), Level.OK)])
def test_qemu_that_opens_templates_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], level: Level
) -> None:
    monkeypatch.setattr(binary, "find", lambda _: "/q")
    monkeypatch.setattr(binary, "known", lambda *_: binary.Binary("/q", version, "pc-q35", ()))
    (found,) = _of(doctor._qemu, tmp_path)
    assert found.level is level
    assert ("for writing" in found.text) is (level is Level.WARN)


def _settings_with_lean_qemu(home: Path, version: str) -> Settings:
    directory = home / "qemu/7.2-lean-1"
    directory.mkdir(parents=True)
    (directory / binary.NAME).write_text("")
    (directory / binary.NAME).chmod(0o755)
    (directory / binary.MANIFEST).write_text(json.dumps({"version": version, "compiler": "gcc", "sha256": "0"}))
    binary.make_current(str(home), "7.2-lean-1")
    settings = Settings()
    settings.home = str(home)
    return settings


@pytest.mark.parametrize(("built", "level"), [("1:7.2-1", Level.WARN), ("1:7.2-2", Level.OK)])
def test_a_lean_qemu_that_debian_has_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: str, level: Level
) -> None:
    monkeypatch.setattr(doctor.qemu_build, "candidate", lambda: "1:7.2-2")
    settings = _settings_with_lean_qemu(tmp_path, built)
    (found,) = doctor._run("qemu", doctor._lean_qemu, settings)
    assert found.level is level
    assert built in found.text
    settings.qemu = "/bin/true"
    (found,) = doctor._run("qemu", doctor._lean_qemu, settings)
    assert (found.level, found.hint) == (Level.OK, "rundctl qemu build")


def _on(monkeypatch: pytest.MonkeyPatch, found: Kvm, *, virtualises: bool = True) -> None:
    """Another host than this one."""
    monkeypatch.setattr(doctor.kvm, "ask", lambda _: found)
    monkeypatch.setattr(doctor.machine, "virtualises", lambda _: virtualises)


WORKS = Kvm("1")
BUSY = Kvm(refusal="/dev/kvm: device or resource busy", hint="end the other hypervisor")
MISSING = Kvm(refusal="/dev/kvm is missing", hint="modprobe", is_there=False)


@pytest.mark.parametrize(
    ("setting", "kvm", "level", "words"),
    [
        ("tcg", WORKS, Level.WARN, ("asked for in the settings", "many times faster")),
        ("kvm", WORKS, Level.OK, ("asked for in the settings", "")),
        (
            "kvm",
            BUSY,
            Level.FAIL,
            ('accelerator = "kvm": /dev/kvm: device or resource busy', "end the other hypervisor"),
        ),
        ("kvm", MISSING, Level.FAIL, ('accelerator = "kvm": /dev/kvm is missing', "modprobe")),
        ("auto", MISSING, Level.WARN, ("/dev/kvm is missing", "modprobe")),
        ("auto", BUSY, Level.WARN, ("tcg (emulation): /dev/kvm: device or resource busy", "end the other hypervisor")),
        ("auto", WORKS, Level.WARN, ("not known yet", "rundctl template build")),
    ],
)
def test_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, kvm: Kvm, level: Level, words: tuple[str, str]
) -> None:
    _on(monkeypatch, kvm)
    settings = Settings()
    settings.home, settings.accelerator = str(tmp_path), setting
    found, *more = doctor._run("accelerator", doctor._accelerator, settings)
    assert found.level is level
    assert words[0] in found.text
    assert words[1] in found.hint
    assert len(more) == (level is Level.OK)


@pytest.mark.parametrize(("flag", "extension"), [("vmx", "Intel's VMX"), ("svm", "AMD's SVM")])
def test_what_of_kvm_was_tested_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, extension: str
) -> None:
    _on(monkeypatch, WORKS)
    monkeypatch.setattr(doctor.machine, "processor", lambda: ("a processor", {flag}))
    settings = Settings()
    settings.home, settings.accelerator = str(tmp_path), "kvm"
    _, found = doctor._run("accelerator", doctor._accelerator, settings)
    assert (found.level, found.hint) == (Level.OK, "rundctl doctor --bench prints a table for a report")
    assert f"in an emulated machine only, with AMD's SVM, Linux 6.1 and QEMU 7.2; here are {extension}, " in found.text


def test_a_processor_that_cannot_virtualise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _on(monkeypatch, WORKS, virtualises=False)
    (found,) = _of(doctor._accelerator, tmp_path)
    assert (found.level, "neither vmx nor svm" in found.text) == (Level.WARN, True)
    assert "nested virtualisation" in found.hint


def test_when_kvm_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _on(monkeypatch, WORKS)
    failed = Verdict(Accelerator.TCG, "KVM does not work here", has_fallen=True, retry_s=accelerator.now_s() + 600)
    monkeypatch.setattr(doctor.accelerator, "recall", lambda *_: failed)
    (found,) = _of(doctor._accelerator, tmp_path)
    assert "KVM does not work here" in found.text
    assert "tried again by a create in 10 minutes" in found.hint


@pytest.mark.parametrize("inside", [".", "templates"])
def test_reflink_is_tried_where_templates_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    tried: list[str] = []
    monkeypatch.setattr(doctor.ficlone, "works_in", lambda place: tried.append(os.path.realpath(place)) or True)
    (found,) = _of(doctor._reflinks, tmp_path)
    assert found.level is Level.OK
    assert tried == [str((tmp_path / inside).resolve())]


@pytest.mark.parametrize(("kib", "level"), [(0, Level.OK), (52, Level.OK), (1200, Level.WARN)])
def test_reflink_store_pays_from_a_size_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int, level: Level
) -> None:
    monkeypatch.setattr(doctor.ficlone, "works_in", lambda _: False)
    store.make_directories(str(tmp_path / "templates/key"))
    (tmp_path / "templates/key" / store.UPPERS[0]).write_bytes(b"u" * 1024 * kib)
    (found,) = _of(doctor._reflinks, tmp_path)
    assert found.level is level
    assert found.hint == "rundctl storage init makes one"


def test_reflink_store_that_is_not_mounted(tmp_path: Path) -> None:
    (tmp_path / "storage.img").write_bytes(b"")
    (found,) = _of(doctor._reflinks, tmp_path)
    assert (found.level, found.hint) == (Level.WARN, "rundctl storage mount")


def test_exposed_templates(tmp_path: Path) -> None:
    root = tmp_path / "templates"
    assert list(doctor._exposed(str(root))) == []
    root.mkdir(0o700)
    assert list(doctor._exposed(str(root))) == []
    root.chmod(0o755)
    (found,) = doctor._exposed(str(root))
    assert (found.level, found.hint) == (Level.WARN, f"chmod 0700 {root}")
    os.chown(root, 1000, 1000)
    (found,) = doctor._exposed(str(root))
    assert found.level is Level.FAIL


def test_damaged_templates(tmp_path: Path) -> None:
    (tmp_path / "templates/k1").mkdir(parents=True, mode=0o700)
    (tmp_path / "templates").chmod(0o700)
    none, damaged = _of(doctor._templates, tmp_path)
    assert "none for the present settings" in none.text
    assert damaged.level is Level.WARN
    assert "damaged" in damaged.text


def _hierarchies(monkeypatch: pytest.MonkeyPatch, *found: Hierarchy) -> None:
    monkeypatch.setattr(doctor.cgroupfs, "hierarchies", lambda: list(found))


def test_cgroup_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    _hierarchies(monkeypatch, Hierarchy(str(tmp_path), frozenset({"nsdelegate", "favordynmods"}), is_v2=True))
    one, two = _of(doctor._cgroups, tmp_path)
    assert (one.level, one.text) == (Level.OK, "v2, 1 hierarchy: cpu cpuset io memory pids")
    assert "favordynmods is on" in two.text


def test_cgroup_v1_without_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hierarchies(
        monkeypatch,
        Hierarchy("/c/cpu", frozenset({"cpu"}), is_v2=False),
        Hierarchy("/c/pids", frozenset({"pids"}), is_v2=False),
    )
    one, two = _of(doctor._cgroups, tmp_path)
    assert one.level is Level.WARN
    assert one.text == "v1, 2 hierarchies: cpu pids; without memory"
    assert two.hint == "mount -o remount,favordynmods /c/cpu (Linux 6.0)"


def test_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[dict[str, object]] = []
    monkeypatch.setattr(doctor.upkeep, "status", lambda: pools)
    assert "made on the spot" in _of(doctor._pools, tmp_path)[0].text
    pools += [
        {"parent": "/a", "open": True, "free": 3, "leased": 1, "orphaned": 0},
        {"parent": "/b", "open": False, "free": 0, "leased": 1, "orphaned": 0},
        {"parent": "/c", "open": True, "free": 3, "leased": 0, "orphaned": 2},
    ]
    one, two, three = _of(doctor._pools, tmp_path)
    assert (one.level, one.text) == (Level.OK, "/a: 3 slots are free, 1 leased")
    assert two.text.endswith("it is drained")
    assert (three.level, three.hint) == (Level.WARN, "rundctl pool fill --parent /c takes them back")


def test_no_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hierarchies(monkeypatch)
    (found,) = _of(doctor._cgroups, tmp_path)
    assert found.level is Level.FAIL


def test_drop_in(tmp_path: Path, checkout: Path) -> None:
    places = (str(tmp_path / "none.conf"), str(tmp_path / "conf.d"))
    assert doctor._drop_in(places).level is Level.WARN
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.conf").write_text('[engine.runtimes]\nrundctl = ["/nowhere/rundctl", "/bin/true"]\n')
    assert "/bin/true" in doctor._drop_in(places).text
    (tmp_path / "conf.d/b.conf").write_text('[engine.runtimes]\nrundctl = ["/nowhere/rundctl"]\n')
    assert "none of /nowhere/rundctl is there" in doctor._drop_in(places).text
    (tmp_path / "conf.d/c.conf").write_text((checkout / "docs/examples/podman-rundctl.conf").read_text())
    assert "/usr/local/bin/rundctl" in doctor._drop_in(places).text


@pytest.mark.parametrize(("level", "code"), [(Level.OK, 0), (Level.WARN, 0), (Level.FAIL, 1)])
def test_exit_code_and_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: Level, code: int
) -> None:
    found = [Finding("one", Level.OK, "fine"), Finding("two", level, "[so] so", "do this")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert command.examine(_options()) == code
    assert capsys.readouterr().out.splitlines() == [
        "ok   one         fine",
        f"{level.value:5}two         [so] so (do this)",
    ]
    assert command.examine(_options("json")) == code
    assert json.loads(capsys.readouterr().out) == {
        "ok": code == 0,
        "findings": [
            {"subject": "one", "level": "ok", "text": "fine", "hint": ""},
            {"subject": "two", "level": level.value, "text": "[so] so", "hint": "do this"},
        ],
    }
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert command.examine(_options()) == code
    shown = capsys.readouterr().out
    assert "LEVEL" in shown
    assert "[so] so" in shown
    assert "do this" in shown
