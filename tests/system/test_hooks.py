"""Hooks of the host: when they run, where, and what ends them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rundctl.engine.records import store

from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict, eventually


def _told(directory: Path, kind: str, then: str = "exit 0") -> JsonDict:
    """A hook that leaves its state and the directory it runs in."""
    script = f"cat > {directory}/{kind}; pwd > {directory}/{kind}.pwd; {then}"
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}


@pytest.mark.parametrize("when", ["prestart", "createRuntime", "poststart", "poststop"])
def test_hooks(cli: Cli, bundle, tmp_path: Path, when: str) -> None:
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\necho "$1 $FOO" > {tmp_path}/args; cat > {tmp_path}/state; pwd > {tmp_path}/pwd\n')
    script.chmod(0o755)

    def change(config: JsonDict) -> None:
        config["hooks"] = {when: [{"path": str(script), "args": ["hook", "arg"], "env": ["FOO=bar"]}]}

    where = bundle("/bin/true", change=change)
    cli("run", "--bundle", str(where), "hooked")
    assert (tmp_path / "args").read_text() == "arg bar\n"
    told = json.loads((tmp_path / "state").read_text())
    assert told["id"] == "hooked"
    assert (told["pid"] > 0) == (when != "poststop")
    assert (tmp_path / "pwd").read_text() == f"{where}\n"


def test_directories_of_single_verbs(cli: Cli, bundle, tmp_path: Path) -> None:
    """As with runc: `delete`, which is told of no bundle, runs them where it is itself."""
    kinds = ("prestart", "createRuntime", "poststart", "poststop")
    where = bundle(
        "/bin/true", change=lambda config: config.update(hooks={kind: [_told(tmp_path, kind)] for kind in kinds})
    )
    cli.create("d", where)
    cli("start", "d")
    cli.wait_status("d", "stopped")
    cli("delete", "d")
    assert [(tmp_path / f"{kind}.pwd").read_text().strip() for kind in kinds] == [str(where)] * 3 + [os.getcwd()]


def test_a_failing_hook_fails_the_create(cli: Cli, bundle) -> None:
    def change(config: JsonDict) -> None:
        config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no thanks >&2; exit 3"]}]}

    assert b"no thanks" in cli("create", "--bundle", str(bundle("/bin/true", change=change)), "h", code=1).stderr
    assert cli("list", "-q").stdout == b""


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize(("argv0", "then"), [("/nonexistent", "exit 0"), ("/bin/true", "exit 3")])
def test_poststop_hooks_of_a_create_that_failed(
    cli: Cli, bundle, tmp_path: Path, verb: str, argv0: str, then: str
) -> None:
    def change(config: JsonDict) -> None:
        broken = {"path": "/bin/sh", "args": ["sh", "-c", "echo oh dear; exit 4"]}
        config["hooks"] = {
            "createRuntime": [_told(tmp_path, "createRuntime", then)],
            "poststop": [broken, _told(tmp_path, "poststop", f"[ ! -e {cli.root}/h ] && touch {tmp_path}/removed")],
        }

    where = bundle(argv0, change=change)
    said = cli(verb, "--bundle", str(where), "h", code=1).stderr.decode().splitlines()
    assert said[0] == "rundctl: warning: error running poststop hook #0 /bin/sh: exit status 4: oh dear"
    assert ("no such file" if argv0 == "/nonexistent" else "createRuntime hook #0") in said[1]
    assert len(said) == 2
    told = json.loads((tmp_path / "poststop").read_text())
    assert (told["id"], told["status"], told["pid"]) == ("h", "stopped", 0)
    assert (tmp_path / "poststop.pwd").read_text() == f"{where}\n"
    assert (tmp_path / "removed").exists(), "it runs when the container is gone"


@pytest.mark.parametrize("how", ["delete", "signal"])
@pytest.mark.parametrize("when", ["prestart", "createRuntime"])
def test_a_create_whose_hook_hangs_can_be_ended(cli: Cli, bundle, tmp_path: Path, when: str, how: str) -> None:
    def change(config: JsonDict) -> None:
        hang = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 90"
        config["hooks"] = {when: [_told(tmp_path, when, hang)], "poststop": [_told(tmp_path, "poststop")]}

    where = str(bundle("/bin/true", change=change))
    with cli.popen("create", "--bundle", where, "h", stderr=subprocess.PIPE) as create:
        eventually((tmp_path / "pid").exists, "the hook runs")
        before = time.monotonic()
        if how == "delete":
            cli("delete", "--force", "h")
            assert (tmp_path / "poststop").exists(), "delete waits for it"
        else:
            create.send_signal(signal.SIGTERM)
        assert create.stderr is not None
        said = create.stderr.read()
        assert create.wait(DEADLINE_S) == (1 if how == "delete" else -signal.SIGTERM)
    assert time.monotonic() - before < 80, "the hook was not waited for"
    assert how == "signal" or f"{when} hook #0 /bin/sh: killed".encode() in said
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "poststop").exists()
    assert b"does not exist" in cli("state", "h", code=1).stderr


def test_run_knows_of_an_end_before_it_waits_for_one(cli: Cli, bundle) -> None:
    """The container is over before its poststart hook is."""
    script = r"""pid=$(sed 's/.*"pid": \([0-9]*\).*/\1/'); until read -r _ _ state _ < /proc/$pid/stat && [ "$state" = Z ]; do :; done"""
    ended = {"path": "/bin/bash", "args": ["bash", "-c", script], "env": ["PATH=/bin"], "timeout": 60}
    where = bundle("/bin/sh", "-c", "exit 7", change=lambda config: config.update(hooks={"poststart": [ended]}))
    cli("run", "--bundle", str(where), "h", code=7)


def test_hooks_have_three_descriptors(cli: Cli, bundle, tmp_path: Path) -> None:
    """Whatever the caller lets rundctl inherit: a lock would be held, and a pipe not end, for as long as a hook's daemon lives."""
    kinds = ("prestart", "createRuntime", "poststart", "poststop")

    def change(config: JsonDict) -> None:
        listing = "exec /bin/ls -l /proc/self/fd"
        config["hooks"] = {
            kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"{listing} > {tmp_path}/{kind}"]}] for kind in kinds
        }

    where = bundle("/bin/true", change=change)
    given = tmp_path / "given"
    given.touch()
    script = f'exec 8<{given} 9>>{given}; exec "$@" 7<{given}'
    argv = [
        "/bin/bash",
        "-c",
        f"exec 10<{given} 251<{given}; {script}",
        "bash",
        *cli.argv("run", "--bundle", str(where), "h"),
    ]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    for kind in kinds:
        assert str(given) not in (tmp_path / kind).read_text(), kind


_FORGE = """
import json, os, sys
root, touched = sys.argv[1:]
os.makedirs(root + "/c")
with open(root + "/c/record.json", "w") as file:
    json.dump({
        "id": "c", "boot_id": "", "creator": {"pid": 1, "start_time": 0}, "created": 0, "committed": True, "oci_version": "1.0", "bundle": "/", "rootfs": "/",
        "annotations": {}, "owner_uid": 0, "cgroups": {"kind": "plain", "places": []},
        "hooks": {"poststart": [], "poststop": [{"path": "/bin/touch", "args": ["touch", touched]}]},
    }, file)
"""


@pytest.mark.parametrize("uid", [65534, 0])
def test_the_hook_of_a_forged_record_is_not_run(uid: int) -> None:
    """A root that was removed as a whole, and that somebody else has made again: whoever calls `delete` without it, as podman does, is led there."""
    common = Path(tempfile.mkdtemp(dir="/tmp"))
    common.chmod(0o1777)
    try:
        root = store.make_root(f"{common}/root")
        with ExitStack() as held:
            container = store.claim(held, root, "c", {})
        link = Path(store._elsewhere_link(root, "c"))
        os.rename(container.path("record.json"), common / "record.json")
        os.rmdir(container.directory)  # the root stays the directory that it was, so that only its owner tells
        os.chown(root, uid, uid)
        touched = common / "touched"
        subprocess.run([sys.executable, "-c", _FORGE, root, touched], user=uid, group=uid, check=True)
        done = subprocess.run([RUNDCTL, "delete", "--force", "c"], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert touched.exists() == (uid == 0), "root's own record is believed, and its hook runs"
        said = subprocess.run([RUNDCTL, "delete", "c"], capture_output=True, text=True, check=False)
        assert said.returncode == 1
        assert ("is not believed: it belongs to uid 65534" in said.stderr) == (uid != 0)
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(common)
