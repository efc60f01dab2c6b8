"""What callers see by the pid that they are told: never anything of the host's."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from .conftest import DEADLINE_S, Cli, JsonDict, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
SHARED = ("time", "user")  # docs/security.md says so
PLACES = ("root", "cwd")
# A hook's look at the pid that it is told on stdin, in the same words as `_seen`.
LOOK = """
told=$(cat); pid=${told#*'"pid":'}; pid=${pid%%[,\\}]*}; pid=$((pid))
for kind in cgroup ipc mnt net pid uts time user; do echo "$kind $(readlink /proc/$pid/ns/$kind)"; done
for place in root cwd; do echo "$place $(stat -Lc %d:%i /proc/$pid/$place)"; done
"""


def _seen(pid: int | str) -> dict[str, str]:
    found = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in (*OWN, *SHARED)}
    for place in PLACES:
        info = os.stat(f"/proc/{pid}/{place}")
        found[place] = f"{info.st_dev}:{info.st_ino}"
    return found


def _shared_with(ours: dict[str, str], found: dict[str, str]) -> set[str]:
    assert ours.keys() == found.keys()
    return {name for name, value in found.items() if value == ours[name]}


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout


def test_nothing_that_the_pid_shows_is_the_hosts(cli: Cli, bundle, tmp_path: Path) -> None:
    asked = ["rundctl", "--root", str(cli.root), "state", "n"]

    def hook(kind: str, then: str = "") -> list[JsonDict]:
        script = f"exec > {tmp_path}/{kind}; {LOOK}{then}"
        path = "PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": [path]}]

    def change(config: JsonDict) -> None:
        state = f"{cli.argv()[0]} {' '.join(asked[1:])} > {tmp_path}/state"
        config["hooks"] = {"prestart": hook("prestart"), "createRuntime": hook("createRuntime", state)}
        config |= {"hostname": "box", "domainname": "example.org"}

    ours = _seen("self")
    cli.create("n", bundle("/bin/sleep", "1000", change=change))
    pid = cli.state("n")["pid"]
    created = _seen(pid)
    assert _shared_with(ours, created) == set(SHARED)
    for kind in ("prestart", "createRuntime"):
        told = dict(line.split(" ") for line in (tmp_path / kind).read_text().splitlines())
        assert told == created, kind
    asked_early = json.loads((tmp_path / "state").read_text())
    assert (asked_early["status"], asked_early["pid"]) == ("creating", 0)
    for verb, status in (("start", "running"), ("pause", "paused")):
        cli(verb, "n")
        assert cli.status("n") == status
        assert _seen(pid) == created
    for child in psutil.Process(pid).children(recursive=True):  # QEMU; its mounts are the host's still
        assert _shared_with(ours, _seen(child.pid)) <= {*SHARED, *PLACES}
    assert _run("nsenter", f"--uts=/proc/{pid}/ns/uts", "uname", "-n") == "box\n"
    assert _run("nsenter", f"--uts=/proc/{pid}/ns/uts", "cat", "/proc/sys/kernel/domainname") == "example.org\n"
    inside = _run("nsenter", f"--cgroup=/proc/{pid}/ns/cgroup", "cat", f"/proc/{pid}/cgroup").splitlines()
    joined = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if not line.endswith(":/")]
    assert joined
    assert {line.split(":", 2)[2] for line in inside} == {"/"}, "the container's cgroup is the root of its namespace"
    cli("resume", "n")
    cli("delete", "--force", "n")


@contextmanager
def _stand_in() -> Iterator[str]:
    """A network namespace that stands for the host's, with an uplink and a default route, as nsenter's option."""
    script = """
        ip link set lo up
        ip link add eth0 type veth peer name uplink
        ip addr add 192.0.2.7/24 dev eth0
        ip link set uplink up
        ip link set eth0 up
        ip route add default via 192.0.2.1
        echo ready
        exec cat
    """
    argv = ["unshare", "--net", "sh", "-ec", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield f"--net=/proc/{process.pid}/ns/net"
        finally:
            process.stdin.close()


def _network(host: str) -> dict[str, object]:
    """Interfaces with their addresses by name, and the routes."""
    links = json.loads(_run("nsenter", host, "ip", "-json", "addr"))
    routes = json.loads(_run("nsenter", host, "ip", "-4", "-json", "route"))
    addresses = {
        link["ifname"]: [found["local"] for found in link["addr_info"] if found["family"] == "inet"] for link in links
    }
    return {**addresses, "routes": routes}


def test_a_network_plugin_does_not_touch_the_callers_network(cli: Cli, bundle) -> None:
    """As CNI's bridge does it, which `podman build` has run on the pid's namespace."""
    where = bundle("/bin/sleep", "1000")
    with _stand_in() as host:
        before = _network(host)
        assert before["eth0"] == ["192.0.2.7"]
        argv = ["nsenter", host, *cli.argv("run", "--detach", "--bundle", str(where), "n")]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(argv, check=True, timeout=DEADLINE_S, **silent)
        assert _network(host) == before
        pid = cli.state("n")["pid"]
        inside = f"--net=/proc/{pid}/ns/net"
        assert _network(inside) == {"lo": [], "routes": []}
        _run("nsenter", host, "ip", "link", "add", "veth7", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _run("nsenter", inside, "ip", "addr", "add", "10.88.0.2/16", "dev", "eth0")
        _run("nsenter", inside, "ip", "link", "set", "eth0", "up")
        _run("nsenter", inside, "ip", "route", "add", "default", "via", "10.88.0.1")
        after = _network(host)
        assert after.pop("veth7") == []
        assert after == before
        cli("delete", "--force", "n")
        eventually(lambda: _network(host) == before, "its end of the cable goes with the container")
