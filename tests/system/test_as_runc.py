"""What config.json may hold, row by row beside runc: the same status and output, or one line of ours that names the field."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Cli, JsonDict

RUNC = "/usr/sbin/runc"
ALL_DEVICES = {"allow": True, "access": "rwm"}
PROPAGATIONS = ("shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable")


class Beside:
    """One bundle, run by both; ``/vol`` in it is a directory of the host."""

    def __init__(self, directory: Path, cli: Cli, spec: JsonDict) -> None:
        self.directory = directory
        self._cli = cli
        self._spec = spec
        self._count = 0

    def config(self, *args: str) -> JsonDict:
        """The bundle's configuration for a command; a shell's script if it is one word."""
        config: JsonDict = copy.deepcopy(self._spec)
        config["process"]["args"] = ["/bin/sh", "-c", *args] if len(args) == 1 else list(args)
        config["root"]["path"] = "rootfs"
        return config

    def write(self, text: str | bytes) -> None:
        """config.json."""
        (self.directory / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    def ours(self) -> subprocess.CompletedProcess[bytes]:
        """What rundctl makes of it."""
        self._count += 1
        return self._cli("run", "--bundle", str(self.directory), f"ours{self._count}", code=None)

    def runc(self) -> subprocess.CompletedProcess[bytes]:
        """What runc makes of it."""
        argv = [
            RUNC,
            "--root",
            str(self.directory / "runc"),
            "run",
            "--bundle",
            str(self.directory),
            f"r{os.getpid()}-{self._count}",
        ]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False)

    def same(self, text: str | bytes) -> subprocess.CompletedProcess[bytes]:
        """Both, of whom status, output and the process' own words on stderr must be the same; ours."""
        self.write(text)
        theirs, ours = self.runc(), self.ours()
        assert (ours.returncode, ours.stdout.decode()) == (theirs.returncode, theirs.stdout.decode()), (
            ours.stderr,
            theirs.stderr,
        )
        return ours


@pytest.fixture
def beside(tmp_path: Path, cli: Cli, spec: JsonDict, rootfs: Path) -> Iterator[Beside]:
    directory = tmp_path / "beside"
    directory.mkdir()
    shutil.copytree(rootfs, directory / "rootfs", symlinks=True)
    for name, text in (("text", "no program\n"), ("nothing", "#!/no/such\n"), ("empty", "")):
        (directory / "rootfs/bin" / name).write_text(text)
        (directory / "rootfs/bin" / name).chmod(0o755)
    return Beside(directory, cli, spec)


@pytest.mark.parametrize("name", ["text", "nothing", "empty"])
def test_what_is_no_program_says_so_itself(beside: Beside, name: str) -> None:
    """1, and runc's words, by which podman knows nothing of 126."""
    words = {"nothing": "no such file or directory"}.get(name, "exec format error")
    done = beside.same(json.dumps(beside.config(f"/bin/{name}", "x")))
    assert (done.returncode, done.stderr) == (1, f"exec /bin/{name}: {words}\n".encode())


def test_a_hundred_thousand_arguments_deep_in_the_unknown(beside: Beside) -> None:
    """And what is no Unicode, members given twice, a long number nobody reads."""
    config = beside.config(
        "/bin/sh", "-c", "echo $# $0 $1 | sed s/@/y/; hostname", "A\ud800", "@@BYTES@@", *["x"] * 100_000
    )
    config["unknown"] = "@@DEEP@@"
    text = json.dumps(config).encode()
    text = text.replace(b'"@@DEEP@@"', b"[" * 9_990 + b'{"n": ' + b"9" * 5_000 + b"}" + b"]" * 9_990)
    text = (
        text.replace(b"@@BYTES@@", b"h\xe2\x82@\xff")[:-1]
        + b', "hostname": "first", "hostname": "second", "process": {"cwd": "/tmp"}}'
    )
    done = beside.same(text)
    assert done.stdout.decode() == "100001 A\ufffd h\ufffd\ufffdy\ufffd\nsecond\n"


def test_variables_in_a_number_that_16_bits_cannot_hold(beside: Beside) -> None:
    config = beside.config("/bin/env")
    config["process"]["args"] = ["/bin/env"]
    config["process"]["env"] = ["PATH=/bin", *(f"V{number}=" for number in range(70_000))]
    assert beside.same(json.dumps(config)).stdout.count(b"\n") == 70_002  # HOME


def test_arguments_too_long_for_execve_and_for_a_plan(beside: Beside) -> None:
    done = beside.same(json.dumps(beside.config("/bin/echo", "x" * 200_000)))
    assert done.stderr == b"exec /bin/echo: argument list too long\n"
    beside.write(json.dumps(beside.config("/bin/echo", *["x" * 100_000] * 390)))
    done = beside.ours()
    assert done.returncode == 1
    assert done.stderr.startswith(b"rundctl: config.json: process.args: 390")
    assert done.stderr.count(b"\n") == 1


def test_nodes_groups_and_paths(beside: Beside) -> None:
    """Devices that the host has not, a relative path, mode 0; relative and whole-root paths to protect; a group given twice."""
    config = beside.config(
        "ls -l /dev/none /dev/block /dev/relative /dev/mode0 /fifo | sed 's/ [A-Z][a-z][a-z] .* / /'; "
        "for node in none block; do (exec < /dev/$node) 2>&1 | sed 's/.*: //'; done; "
        "touch /etc/x 2>&1; touch /x 2>&1; touch /dev/x && echo dev; wc -c < /etc/hosts; id -G"
    )
    config["linux"]["devices"] = [
        {"path": "/dev/none", "type": "c", "major": 241, "minor": 666},
        {"path": "/dev/block", "type": "b", "major": 240, "minor": 17},
        {"path": "dev/relative", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/mode0", "type": "c", "major": 1, "minor": 5, "fileMode": 0},
        {"path": "/fifo", "type": "p"},
    ]
    config["linux"].setdefault("resources", {})["devices"] = [ALL_DEVICES]
    config["linux"]["readonlyPaths"] = ["etc", "/"]
    config["linux"]["maskedPaths"] = ["etc/hosts"]
    config["process"]["user"]["additionalGids"] = [5, 7, 5]
    done = beside.same(json.dumps(config))
    assert b"c---------" in done.stdout
    assert done.stdout.count(b"No such device or address") == 2


@pytest.mark.parametrize("flags", [PROPAGATIONS[:4], PROPAGATIONS[4:]])
def test_propagation_within_the_container(beside: Beside, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "vol").mkdir()
    script = r"sed -n 's,^[^/]*/[^ ]* /t/\([a-z]*\)/\([bt]\) [^ ]* \([a-z]*\).* - .*,\1 \2 \3,p' /proc/self/mountinfo"
    config = beside.config(script)
    for flag in flags:
        bind = {
            "destination": f"/t/{flag}/b",
            "type": "bind",
            "source": str(tmp_path / "vol"),
            "options": ["rbind", flag],
        }
        tmpfs = {"destination": f"/t/{flag}/t", "type": "tmpfs", "source": "t", "options": [flag]}
        config["mounts"] += [bind, tmpfs]
    done = beside.same(json.dumps(config))
    assert done.returncode == 0
    assert (
        len(done.stdout.splitlines()) == 4
    )  # of private and slave ones nothing is to be seen, as their mounts have no peers


def test_mounts_made_later_are_seen_at_the_other_end_and_not_by_the_host(beside: Beside, tmp_path: Path) -> None:
    (tmp_path / "vol/in").mkdir(parents=True)
    (tmp_path / "vol/in/hosts").touch()
    (beside.directory / "rootfs/mnt").mkdir()
    for flag, seen in (("rshared", b""), ("rprivate", b"hosts\n")):
        config = beside.config(
            "mount -o bind /vol /mnt && mount -t tmpfs t /vol/in && ls /mnt/in && touch /vol/in/guests"
        )
        sets = config["process"]["capabilities"]
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*sets[name], "CAP_SYS_ADMIN"]
        vol = {"destination": "/vol", "type": "bind", "source": str(tmp_path / "vol"), "options": ["rbind", flag]}
        config["mounts"].append(vol)
        beside.write(json.dumps(config))
        done = beside.ours()
        assert (done.returncode, done.stdout) == (0, seen), done.stderr
    assert [path.name for path in (tmp_path / "vol/in").iterdir()] == ["hosts"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda config: config["process"]["args"].__setitem__(1, "a\0"),
            "config.json: process.args[1]: a string with a NUL",
        ),
        (lambda config: config.update(hostname=[]), "config.json: hostname: expected string, got array"),
        (
            lambda config: config["process"]["user"].update(uid=2**32 - 1),
            "config.json: process.user.uid: expected a number from 0 to 2147483647",
        ),
        (
            lambda config: config["linux"].update(devices=[{"path": "/dev/x", "type": "b", "major": 7, "minor": 0}]),
            "is a device of the host",
        ),
    ],
)
def test_what_runc_refuses_is_refused_by_its_field(
    beside: Beside, change: Callable[[JsonDict], None], words: str
) -> None:
    config = beside.config("true")
    change(config)
    beside.write(json.dumps(config))
    done = beside.ours()
    assert done.returncode == 1
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    if "device" not in words:
        assert beside.runc().returncode == 1


@pytest.mark.parametrize(("path", "kind"), [("proc", "proc"), ("sys", "sysfs")])
def test_a_rootfs_whose_proc_is_a_link(beside: Beside, path: str, kind: str) -> None:
    """CVE-2023-27561's kind."""
    (beside.directory / "rootfs/elsewhere").mkdir()
    (beside.directory / "rootfs" / path).rmdir()
    (beside.directory / "rootfs" / path).symlink_to("/elsewhere")
    beside.write(json.dumps(beside.config("true")))
    words = f'filesystem "{kind}" must be mounted on ordinary directory'
    theirs, ours = beside.runc(), beside.ours()
    assert theirs.returncode == ours.returncode == 1
    assert words in theirs.stderr.decode().replace("\\", "")
    assert f"mount {kind} on /{path}" in ours.stderr.decode()
    assert words in ours.stderr.decode()


def test_a_capability_without_its_prefix_is_said(beside: Beside) -> None:
    config = beside.config("grep CapBnd /proc/self/status")
    config["process"]["capabilities"] = {"bounding": ["SYS_ADMIN", "CAP_KILL"]}
    done = beside.same(json.dumps(config))
    words = "rundctl: warning: process.capabilities: ignored: unknown capability 'SYS_ADMIN' (did you mean CAP_SYS_ADMIN?)\n"
    assert done.stderr.decode() == words


def test_the_hosts_cgroups_are_the_containers_own(beside: Beside) -> None:
    """As podman --systemd=always asks on a host with version 1: there the second is /sys/fs/cgroup/systemd."""
    config = beside.config(
        "mkdir /sys/fs/cgroup/own /all/own2 && ls -d /sys/fs/cgroup/own2 /all/own && cat /sys/fs/cgroup/cgroup.procs | wc -l"
    )
    config["mounts"] = [entry for entry in config["mounts"] if entry["destination"] != "/sys/fs/cgroup"] + [
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["rprivate", "nosuid", "ro"],
        },
        {
            "destination": "/sys/fs/cgroup/systemd",
            "type": "bind",
            "source": "/sys/fs/cgroup",
            "options": ["bind", "rprivate"],
        },
        {"destination": "/all", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind"]},
    ]
    beside.write(json.dumps(config))
    done = beside.ours()
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"/all/own\n" in done.stdout
