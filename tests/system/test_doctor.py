"""``rundctl doctor`` on this host, whose containers start: its verdicts are what starts have met."""

from __future__ import annotations

import json
import os
import subprocess

from .conftest import RUNDCTL, Cli, JsonDict, eventually


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
