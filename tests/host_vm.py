"""A virtual machine of ours over this host's own root file system: for what needs a kernel with all controllers of cgroup v2, or a systemd.

The container's rootfs is the host's ``/``: read-only by 9p, with a volatile layer of its own on top, so that every program and Python package of the host is
there and nothing that is written stays, but what goes to the directory of results. All capabilities, all of ``/proc`` and ``/sys``, its cgroup2 tree writable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rundctl.engine import settings
from rundctl.oci.linux import CAPABILITIES
from rundctl.oci.spec import example

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
RESULTS = "/results"  # in the VM
_ID = "host"
# The namespace's root may hold no process while its controllers are given to children (cgroup-v2.rst, "No Internal Process Constraint").
_DELEGATE = """
mkdir /sys/fs/cgroup/init
echo 0 >/sys/fs/cgroup/init/cgroup.procs
sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
"$@"
"""  # not exec: the shell stays and reaps what others leave
_CHECKOUT = Path(__file__).resolve().parents[1]
_TMPFS = [("/run", "mode=755"), ("/dev/shm", "mode=1777"), ("/tmp", "mode=1777")]


def _config(command: list[str], results: Path, environment: dict[str, str]) -> dict[str, object]:
    config = example()
    everything = list(CAPABILITIES)
    config["process"] |= {
        "args": command,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        + [f"{name}={value}" for name, value in environment.items()],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), everything),
        "noNewPrivileges": False,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 20000, "soft": 20000}],
    }
    config["root"] = {"path": "/", "readonly": False}
    config["annotations"] = {"io.rundctl.rootfs.lower": "9p"}
    config["linux"] |= {"maskedPaths": [], "readonlyPaths": []}
    mounts = [mount for mount in config["mounts"] if mount["destination"] != "/dev/shm"]
    for mount in mounts:
        mount["options"] = [option for option in mount.get("options", ()) if option != "ro"]
    for destination, mode in _TMPFS:
        mounts.append({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", mode]})
    mounts += [{"destination": path, "type": "bind", "source": path, "options": ["bind", "ro"]} for path in _hidden()]
    mounts.append({"destination": RESULTS, "type": "bind", "source": str(results), "options": ["bind", "rw"]})
    config["mounts"] = mounts
    return config


def _hidden() -> list[str]:
    """Of this checkout and its virtual environment, those that would not be seen: below a tmpfs of the VM, or on another file system than ``/``."""
    needed = [Path(sys.prefix), _CHECKOUT]
    unseen = [
        path
        for path in needed
        if path.stat().st_dev != Path("/").stat().st_dev or any(path.is_relative_to(place) for place, _ in _TMPFS)
    ]
    return [str(path) for path in unseen if not any(path.is_relative_to(other) for other in unseen if other != path)]


def _settings(memory_mib: int, vcpus: int) -> str:
    chosen = {
        "home": settings.load().home,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "rootfs": "volatile",
        "translations_mib": 256,  # Python and its extension modules are more code than a container's usual share
    }
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in chosen.items())


def run(
    command: list[str],
    results: Path,
    *,
    environment: dict[str, str] | None = None,
    delegate: bool = True,
    memory_mib: int = 1024,
    vcpus: int = 2,
    timeout_s: float = 900.0,
) -> tuple[int, str]:
    """Run a command in such a VM, to its end: its exit code, and what it and rundctl printed.

    ``results`` is the directory that it sees as `RESULTS`. With ``delegate`` the command runs in the cgroup ``/init``, and the root gives all its controllers to its
    children; else it is the container's init itself, in the root.
    """
    words = ["/bin/sh", "-ec", _DELEGATE, "host-vm", *command] if delegate else command
    with tempfile.TemporaryDirectory(prefix="host-vm-") as scratch:
        where = Path(scratch)
        (where / "config.json").write_text(json.dumps(_config(words, results, environment or {})))
        (where / "rundctl.toml").write_text(_settings(memory_mib, vcpus))
        env = {**os.environ, "RUNDCTL_CONFIG": str(where / "rundctl.toml")}
        rundctl = [RUNDCTL, "--root", str(where / "root")]
        printed = where / "printed"
        try:
            with printed.open("wb") as output:
                subprocess.run([RUNDCTL, "template", "build"], stdout=output, stderr=output, env=env, check=False)
                code = subprocess.run(
                    [*rundctl, "run", "--bundle", scratch, _ID],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, timeout=timeout_s, check=False,
                ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            subprocess.run([*rundctl, "delete", "--force", _ID], env=env, capture_output=True, check=False)
        return code, printed.read_text(errors="replace")
