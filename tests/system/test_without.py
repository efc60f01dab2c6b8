"""A container is looked at and ended whatever its host has lost since it was made: settings, kernel, QEMU, template, schemas, agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rundctl.engine import settings
from rundctl.vmm import binary

from .conftest import DEADLINE_S, RUNDCTL, Cli

SLEEP = ("/bin/sleep", "1000")
_TAKEN = """
for place in $1; do
    if [ -d "$place" ]; then mount -t tmpfs none "$place"; else mount --bind /dev/null "$place"; fi || exit 99
done
shift
exec "$@"
"""
INSPECTING = (
    ("state", "k"),
    ("list",),
    ("ps", "k"),
    ("ps", "-f", "json", "k"),
    ("events", "--stats", "k"),
    ("kill", "k", "0"),
)
CHANGING = (("pause", "k"), ("resume", "k"), ("update", "--pids-limit", "100", "k"))


def _places() -> dict[str, list[str]]:
    """Where the things are, by what they are."""
    program = "import rundctl; print(rundctl.__path__[0])"
    package = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    inside = package.stdout.strip()
    chosen = settings.load()
    return {
        "qemu": [binary.find(binary.Choice(chosen.home, chosen.qemu))],
        "home": [chosen.home],  # kernels, templates; after what may be in it
        "agent": [f"{inside}/_native"],
        "schemas": [f"{inside}/_schemas", f"{inside}/oci/_generated"],
    }


@pytest.fixture(scope="module")
def places(template: str) -> dict[str, list[str]]:
    del template
    return _places()


def _without(
    taken: list[str], cli: Cli, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a verb where these places are empty: in a mount namespace of its own."""
    shell = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _TAKEN, "sh", " ".join(taken)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [*shell, *cli.argv(*words)], capture_output=True, timeout=DEADLINE_S, env=environment, check=False
    )  # fmt: skip


@pytest.fixture
def malformed(tmp_path: Path) -> dict[str, str]:
    """Settings that nobody can read."""
    path = tmp_path / "malformed.toml"
    path.write_text("memory_mib = [\n")
    return {"RUNDCTL_CONFIG": str(path)}


def test_each_is_missing_and_the_container_is_looked_at(
    cli: Cli, bundle, places: dict[str, list[str]], malformed: dict[str, str]
) -> None:
    cli.create("k", bundle(*SLEEP))
    started = _without([place for found in places.values() for place in found], cli, "start", "k", env=malformed)
    assert (started.returncode, started.stderr) == (0, b"")
    for what, taken, env in (*((what, taken, None) for what, taken in places.items()), ("settings", [], malformed)):
        for words in (*INSPECTING, *CHANGING):
            done = _without(taken, cli, *words, env=env)
            assert (done.returncode, done.stderr) == (0, b""), (what, words)
            if words == ("state", "k"):
                assert json.loads(done.stdout)["status"] == "running"


@pytest.mark.parametrize("force", [True, False])
def test_all_are_missing_and_the_container_is_ended(
    cli: Cli, bundle, places: dict[str, list[str]], malformed: dict[str, str], force: bool
) -> None:
    cli.create("k", bundle(*SLEEP))
    cli("start", "k")
    taken = [place for found in places.values() for place in found]
    for words in (("delete", "--force", "k"),) if force else (("kill", "k", "KILL"), ("delete", "k")):
        if words == ("delete", "k"):
            cli.wait_status("k", "stopped")
        done = _without(taken, cli, *words, env=malformed)
        assert (done.returncode, done.stderr) == (0, b""), words
    assert cli("list", "-q").stdout == b""


def test_a_pool_that_is_not_filled_up_is_a_warning(cli: Cli, bundle, malformed: dict[str, str]) -> None:
    """The only setting that a delete needs says whether it shall be: the container is deleted all the same."""
    parent = f"/rundctl-without-{os.getpid()}"
    subprocess.run([RUNDCTL, "pool", "fill", "--size", "1", "--parent", parent], check=True)
    try:
        for name in ("one", "k"):  # the second finds the pool empty
            path = f"{parent}/{name}"
            cli.create(name, bundle(*SLEEP, change=lambda config, path=path: config["linux"].update(cgroupsPath=path)))
        done = _without([], cli, "delete", "--force", "k", env=malformed)
        assert done.returncode == 0
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"rundctl: warning: {malformed['RUNDCTL_CONFIG']}: ")
        assert cli("list", "-q").stdout == b"one\n"
        cli("delete", "--force", "one")
    finally:
        subprocess.run([RUNDCTL, "pool", "drain", "--parent", parent], check=True)


def test_what_makes_a_container_needs_them(
    cli: Cli, bundle, places: dict[str, list[str]], malformed: dict[str, str]
) -> None:
    """Else the others would show nothing: each is taken away indeed."""
    where = str(bundle(*SLEEP))
    for what, taken, env in (
        *((what, taken, None) for what, taken in places.items() if what != "schemas"),
        ("settings", [], malformed),
    ):
        done = _without(taken, cli, "create", "--bundle", where, "k", env=env)
        assert done.returncode == 1, what
        assert len(done.stderr.splitlines()) == 1, (what, done.stderr)
