"""``rundctl doctor`` on this host, whose containers start: its verdicts are what starts have met."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from rundctl.engine import bench, settings

from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict, eventually

CLOCK_TICK_MS = 10  # to which the interpreter's stage is known


def _findings(cli: Cli, code: int = 0, **environment: str) -> dict[str, list[JsonDict]]:
    report = json.loads(cli("doctor", "--json", code=code, env={**os.environ, **environment}).stdout)
    assert report["ok"] is (code == 0)
    found: dict[str, list[JsonDict]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["subject"], []).append(finding)
    return found


def test_a_host_that_works(cli: Cli, template: str) -> None:
    found = _findings(cli)
    assert all(finding["level"] in ("ok", "warn") for each in found.values() for finding in each)
    used = [finding["text"] for finding in found["template"] if "used by the next create" in finding["text"]]
    assert [text.split(" ")[0] for text in used] == [template.strip()]
    assert ", its clock right within " in used[0]
    manifest = json.loads(cli("template", "show", template.strip()).stdout)
    assert found["accelerator"][0]["text"].startswith(manifest["accelerator"]["name"])
    assert manifest["accelerator"]["reason"] in found["accelerator"][0]["text"]
    assert manifest["kernel"] in found["kernel"][0]["text"]


def test_an_empty_host(cli: Cli, tmp_path) -> None:
    found = _findings(cli, 1, RUNDCTL_HOME=str(tmp_path / "home"))
    assert found["kernel"][0]["hint"] == "rundctl kernel fetch"
    assert found["template"][0]["hint"] == "rundctl template build"
    assert not (tmp_path / "home").exists()


def test_it_changes_nothing(cli: Cli) -> None:
    """Other suites may use the home meanwhile, and change it then; what doctor changed it would change each time."""
    home = os.environ.get("RUNDCTL_HOME", "/var/lib/rundctl")
    listing = ["find", home, "-ignore_readdir_race", "-printf", "%p %i %s %m %T@ %C@\n"]

    def found() -> list[bytes]:
        # A scratch file without a name touches its directory's times and nothing else.
        return subprocess.run(listing, capture_output=True, check=True).stdout.split(b"\n")[1:]

    def is_unchanged() -> bool:
        before = found()
        cli("doctor")
        return found() == before

    eventually(is_unchanged, "doctor leaves the home as it is")


def test_not_root(template: str) -> None:
    # The capability: this checkout may be in root's home, which nobody else can enter.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading, RUNDCTL, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "fail user        uid 65534 is not root (sudo rundctl doctor)" in done.stdout.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("template")
def test_bench(cli: Cli) -> None:
    """Starts that were really made: their stages add up to less than the call, and nothing is left of them."""
    home = Path(settings.load().home)
    report = json.loads(cli("doctor", "--bench", "--json").stdout)
    assert report["starts"] == bench.STARTS
    ours = report["rundctl"]
    assert set(ours["stages_ms"]) >= {"interpreter", "template", "restore", "plan", "start", "total"}
    assert 0 < ours["min_ms"] <= ours["median_ms"] <= ours["max_ms"]
    assert all(ms >= 0 for ms in ours["stages_ms"].values())
    assert ours["stages_ms"]["restore"] > 0
    assert ours["stages_ms"]["total"] < ours["max_ms"] + CLOCK_TICK_MS
    assert not report["runc_failed"]
    assert report["runc"]["median_ms"] > 0
    assert report["host"]["accelerator"].split(":")[0] in ("kvm", "tcg")
    assert not (home / ".bench.tmp").exists()


@pytest.mark.usefixtures("template")
def test_bench_as_a_table(cli: Cli) -> None:
    lines = cli("doctor", "--bench").stdout.decode().splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") and line.count("|") == 4 for line in lines)
    assert any(line.startswith("| whole call | ") for line in lines)


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize(
    ("settings_", "words"),
    [('qemu = "/nowhere"', b"/nowhere"), ('lower = "virtiofs"\nvirtiofsd = "/nowhere"', b"measure starts: ")],
)
def test_bench_that_cannot_run_says_why(cli: Cli, tmp_path: Path, settings_: str, words: bytes) -> None:
    """Without a template, or by the words of the run that failed. Nothing is left."""
    home = settings.load().home
    (tmp_path / "config.toml").write_text(f'home = "{home}"\n{settings_}\n')
    done = cli("doctor", "--bench", code=1, env={**os.environ, "RUNDCTL_CONFIG": str(tmp_path / "config.toml")})
    said = done.stderr.splitlines()[-1]
    assert words in said
    assert b"/nowhere" in said
    assert b"Traceback" not in done.stderr
    assert not (Path(home) / ".bench.tmp").exists()


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_bench_that_is_interrupted_leaves_nothing(cli: Cli, signo: int) -> None:
    workspace = Path(settings.load().home) / ".bench.tmp"
    process = cli.popen("doctor", "--bench")
    eventually(lambda: list(workspace.glob("rundctl/*")), "a container is being made")
    process.send_signal(signo)
    assert process.wait(DEADLINE_S) == -signo
    assert not workspace.exists()


@pytest.mark.usefixtures("template")
def test_bench_that_was_killed_is_swept(cli: Cli) -> None:
    workspace = Path(settings.load().home) / ".bench.tmp"
    process = cli.popen("doctor", "--bench")
    eventually(lambda: list(workspace.glob("rundctl/*")), "a container is being made")
    process.kill()
    process.wait(DEADLINE_S)
    assert workspace.exists()
    cli("doctor", "--bench")
    assert not workspace.exists()
