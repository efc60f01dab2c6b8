"""--systemd-cgroup on this host: with systemd a scope, without one a line that says so. More with a real systemd: tests/systemd."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rundctl.host import systemd


def test_with_or_without_systemd(cli, bundle):
    """Whichever this host has."""
    name = f"test-{os.getpid()}"

    def change(config):
        config["linux"]["cgroupsPath"] = f"rundctl-test.slice:libpod:{name}"

    where = str(bundle("/bin/true", change=change))
    if systemd.is_running():
        done = cli("--debug", "--systemd-cgroup", "run", "--bundle", where, "c1")
        assert b"a scope made by systemd" in done.stderr
        return
    for flags in (["--systemd-cgroup"], ["--cgroup-manager", "systemd"]):
        done = cli(*flags, "run", "--bundle", where, "c1", code=1)
        assert done.stderr == (
            b"rundctl: --systemd-cgroup: systemd is not running here "
            b"(without --systemd-cgroup cgroups are made directly; podman: --cgroup-manager cgroupfs)\n"
        )
        assert json.loads(cli("list", "-f", "json").stdout or b"[]") in ([], None)


def test_another_form_is_refused_in_runc_s_words(cli, bundle):
    where = str(bundle("/bin/true", change=lambda config: config["linux"].update(cgroupsPath="/a/b")))
    done = cli("--systemd-cgroup", "run", "--bundle", where, "c1", code=1)
    assert (
        b'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "/a/b" instead'
        in done.stderr
    )


def test_without_the_flag_the_form_is_a_name(cli, bundle):
    name = f"system.slice:libpod:test-{os.getpid()}"
    where = bundle("/bin/sleep", "1000", change=lambda config: config["linux"].update(cgroupsPath=name))
    cli.create("c1", where)
    (pid,) = (cli.state("c1")["pid"],)
    assert f"/rundctl/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    cli("delete", "--force", "c1")
