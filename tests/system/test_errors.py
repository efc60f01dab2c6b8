"""Bad input and bad luck: one clear line, runc's exit code, nothing left behind (the autouse fixture looks)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from rundctl.engine import settings
from rundctl.engine.template import store
from rundctl.host import manifest as manifests
from rundctl.vmm import binary

from .conftest import DEADLINE_S, RUNDCTL, Cli


def _refused(
    cli: Cli, *arguments: str, code: int = 1, log: Path | None = None, env: dict[str, str] | None = None
) -> str:
    flags = ["--log", str(log), "--log-format", "json"] if log else []
    done = cli(*flags, *arguments, code=code, env=env)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    if log:
        entry = json.loads(log.read_text().splitlines()[-1])
        assert entry["level"] == "error"
        assert entry["msg"] in lines[0]
        assert entry["time"]
    return lines[0]


def test_missing_bundle(cli: Cli, tmp_path: Path) -> None:
    line = _refused(cli, "create", "--bundle", str(tmp_path / "nowhere"), "e", log=tmp_path / "log")
    assert "nowhere" in line


def test_missing_config(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in _refused(cli, "create", "--bundle", str(tmp_path / "empty"), "e")


def test_malformed_json(cli: Cli, bundle) -> None:
    where = bundle("/bin/true")
    (where / "config.json").write_text('{"ociVersion": "1.0.0",\n  "process": }')
    line = _refused(cli, "create", "--bundle", str(where), "e")
    assert "line 2" in line


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        (lambda config: config["process"].update(args="sh"), "process.args", "array"),
        (lambda config: config["process"]["user"].update(uid="root"), "process.user.uid", "integer"),
        (lambda config: config.update(hostname=7), "hostname", "string"),
        (lambda config: config.pop("ociVersion"), "ociVersion", "missing"),
        (lambda config: config["mounts"].append({"source": "x"}), "mounts[", "destination"),
        (lambda config: config.update(ociVersion="2.0.0"), "ociVersion", "1."),
    ],
)
def test_schema_violations(cli: Cli, bundle, change, path: str, expected: str) -> None:
    line = _refused(cli, "create", "--bundle", str(bundle("/bin/true", change=change)), "e")
    assert path in line
    assert expected in line


def test_missing_rootfs(cli: Cli, bundle) -> None:
    where = bundle("/bin/true", change=lambda config: config["root"].update(path="/nowhere/at/all"))
    assert "/nowhere/at/all" in _refused(cli, "create", "--bundle", str(where), "e")


@pytest.mark.parametrize(
    ("argv0", "words"),
    [
        ("no-such-command", "executable file not found in $PATH"),
        ("/no/such/file", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "permission denied"),
    ],
)
def test_args0(cli: Cli, bundle, argv0: str, words: str) -> None:
    """runc says so at create, and callers tell 126 from 127 by these words."""
    line = _refused(cli, "run", "--bundle", str(bundle(argv0)), "e")
    assert words in line
    assert argv0 in line


def test_unknown_ids(cli: Cli) -> None:
    for verb in ("state", "start", "delete"):
        assert "does not exist" in _refused(cli, verb, "nobody")
    assert "does not exist" in _refused(cli, "kill", "nobody", "TERM")


def test_id_in_use(cli: Cli, bundle) -> None:
    where = bundle("/bin/sleep", "1000")
    cli.create("e", where)
    assert "container with given ID already exists" in _refused(cli, "create", "--bundle", str(where), "e")
    assert cli.status("e") == "created"


@pytest.mark.parametrize("running", [True, False])
def test_a_damaged_record(cli: Cli, bundle, running: bool) -> None:
    """It hides no other container, and `delete --force` frees its id and ends its VM."""
    cli.create("other", bundle("/bin/sleep", "1000"))
    cli.create("e", bundle("/bin/sleep", "1000"))
    cgroups = {line.split(":", 2)[2] for line in Path(f"/proc/{cli.state('e')['pid']}/cgroup").read_text().splitlines()}
    if not running:
        cli("kill", "e", "KILL")
        cli.wait_status("e", "stopped")
    os.truncate(cli.root / "e/record.json", 10)
    for verb in ("state", "delete", "start"):
        assert "is damaged" in _refused(cli, verb, "e")
    listed = cli("list", "-q")
    assert listed.stdout == b"other\n"
    assert b"rundctl delete --force e" in listed.stderr
    done = cli("delete", "--force", "e")
    assert b"is damaged" in done.stderr
    assert b"removed" in done.stderr
    assert not (cli.root / "e").exists()
    cli.create("e", bundle("/bin/sleep", "1000"))
    cli("delete", "--force", "e")
    for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):  # as the warning says
        if any(path != "/" and directory.endswith(path) for path in cgroups):
            Path(directory).rmdir()


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_run_keeps_the_code_whatever_its_delete_meets(cli: Cli, bundle, tmp_path: Path, damage: str) -> None:
    """As with runc: told, but the code is the container's."""
    where = bundle("/bin/sh", "-c", "echo ready; read end; exit 42")
    record, aside = cli.root / "e/record.json", tmp_path / "record.json"
    with cli.popen(
        "run", "--bundle", str(where), "e", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdin is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"ready\n"
        shutil.copy(record, aside)
        if damage == "truncated":
            os.truncate(record, 10)
        else:
            record.unlink()
        run.stdin.write(b"\n")
        run.stdin.flush()
        said = run.stderr.read()
        assert run.wait(DEADLINE_S) == 42
    assert b"warning: delete e: " in said
    shutil.copy(aside, record)
    cli("delete", "e")


@pytest.mark.parametrize("bad", ["..", "a/b", "", "a b", "-x/"])
def test_bad_ids(cli: Cli, bundle, bad: str) -> None:
    done = cli("create", "--bundle", str(bundle("/bin/true")), "--", bad, code=None)
    assert done.returncode != 0


def test_bad_signal(cli: Cli, bundle) -> None:
    cli.create("e", bundle("/bin/sleep", "1000"))
    assert "NOSUCH" in _refused(cli, "kill", "e", "NOSUCH")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda config: config["process"].update(terminal=True), "terminal"),
        (lambda config: config["process"].update(scheduler={"policy": "SCHED_OTHER"}), "scheduler"),
        (lambda config: config["process"].update(ioPriority={"class": "IOPRIO_CLASS_IDLE"}), "ioPriority"),
        (lambda config: config["linux"].update(personality={"domain": "LINUX32"}), "personality"),
        (lambda config: config.update(hooks={"startContainer": [{"path": "/bin/true"}]}), "startContainer"),
        (lambda config: config["linux"]["namespaces"].append({"type": "user"}), "user"),
        (lambda config: config["linux"].update(resources={"memory": {"disableOOMKiller": True}}), "disableOOMKiller"),
        (lambda config: config["linux"].update(resources={"cpu": {"realtimeRuntime": 1000}}), "cpu.realtimeRuntime"),
        (lambda config: config["linux"].update(resources={"memory": {"limit": 1 << 34}}), "memory.limit"),
        (lambda config: config["linux"].update(resources={"cpu": {"quota": 900000}}), "cpu.quota"),
        (
            lambda config: config["linux"].update(
                namespaces=[n for n in config["linux"]["namespaces"] if n["type"] != "network"]
            ),
            "network",
        ),
        (
            lambda config: config["linux"].update(
                namespaces=[
                    {**n, "path": "/proc/1/ns/net"} if n["type"] == "network" else n
                    for n in config["linux"]["namespaces"]
                ]
            ),
            "namespaces[1].path",
        ),
        (
            lambda config: config["mounts"].append(
                {"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]}
            ),
            "/nowhere",
        ),
        (lambda config: config["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"}), "nosuchfs"),
        (lambda config: config["linux"].update(sysctl={"kernel.hostname": "x"}), "kernel.hostname"),
    ],
)
def test_refused_plainly(cli: Cli, bundle, change, word: str) -> None:
    assert word in _refused(cli, "create", "--bundle", str(bundle("/bin/true", change=change)), "e")


def test_later_verbs_are_refused(cli: Cli) -> None:
    for verb in ("exec", "checkpoint"):
        assert verb in _refused(cli, verb, "e")
    assert cli("checkpoint", "--help", code=None).returncode != 0


def test_no_qemu(cli: Cli, bundle, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('qemu = "/nowhere/qemu-system-x86_64"\n')
    line = _refused(
        cli, "run", "--bundle", str(bundle("/bin/true")), "e", env={"RUNDCTL_CONFIG": str(config), **_home()}
    )
    assert "qemu" in line
    assert "not found" not in line  # podman would make 127 of it
    assert "no such file" not in line


def test_no_kernel(cli: Cli, bundle, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('kernel = "/nowhere/vmlinux"\n')
    line = _refused(
        cli, "run", "--bundle", str(bundle("/bin/true")), "e", env={"RUNDCTL_CONFIG": str(config), **_home()}
    )
    assert "/nowhere/vmlinux" in line
    assert "not found" not in line
    assert "no such file" not in line.lower()


def _home() -> dict[str, str]:
    return {name: os.environ[name] for name in ("RUNDCTL_HOME",) if name in os.environ}


@dataclass(frozen=True)
class Home:
    """A RUNDCTL_HOME with one template, and the environment that leads to both."""

    template: Path
    env: dict[str, str]


def _make_home(home: Path, key: str) -> Home:
    """A home of the kernels and QEMU that the host's has, and of a copy of one template that is as good as the host's, and may be damaged."""
    chosen = settings.load()
    shared = Path(chosen.home)
    (home / "kernels").symlink_to(shared / "kernels")
    config = home / "rundctl.toml"
    qemu = binary.find(binary.Choice(chosen.home, chosen.qemu))  # the key of a template is also of its path
    config.write_text(f"home = {json.dumps(str(home))}\nqemu = {json.dumps(qemu)}\n")
    copy = home / "templates" / key
    copy.parent.mkdir(mode=0o700)
    source = shared / "templates" / key
    subprocess.run(["cp", "-a", "--sparse=always", shared / "digests.json", home], check=True)
    subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", source, copy], check=True)
    manifest = json.loads((copy / manifests.NAME).read_text())
    for name, described in manifest["files"].items():
        described["identity"] = manifests.file_identity(str(copy / name))
    (copy / manifests.NAME).write_text(json.dumps(manifest))
    assert _is_intact(copy)
    return Home(copy, {**os.environ, "RUNDCTL_CONFIG": str(config), "RUNDCTL_HOME": str(home)})


def _is_intact(template: Path) -> bool:
    manifest = manifests.read(str(template), store.FORMAT)
    return manifest is not None and manifests.is_intact(str(template), manifest, store.FILES)


def _built_ns(template: Path) -> int:
    return int(json.loads((template / manifests.NAME).read_text())["built_ns"])


@pytest.mark.parametrize("damage", ["nothing", "memory", "state", "upper3/image", "manifest", "all"])
def test_a_damaged_template_is_rebuilt(cli: Cli, bundle, template: str, tmp_path: Path, damage: str) -> None:
    """And none that is not."""
    directory = tmp_path / "home"
    directory.mkdir()
    home = _make_home(directory, template.strip())
    copy = home.template
    before = _built_ns(copy)
    if damage == "all":
        shutil.rmtree(copy)
    for file in copy.glob(f"{damage}*"):
        os.truncate(file, 100)
    assert _is_intact(copy) == (damage == "nothing")
    done = cli("run", "--bundle", str(bundle("/bin/echo", "fine")), "e", env=home.env)
    assert done.stdout == b"fine\n"
    assert _is_intact(copy)
    assert (_built_ns(copy) == before) == (damage == "nothing")


def test_full_disk(cli: Cli, bundle, tmp_path: Path) -> None:
    """--root on a file system without space."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        (small / "fill").write_bytes(b"x" * 40960)
        with (small / "more").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        done = subprocess.run(
            [RUNDCTL, "--root", small / "root", "create", "--bundle", bundle("/bin/true"), "e"],
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr or b"no space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (small / "root/e").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_full_disk_while_the_upper_is_made(cli: Cli, bundle, template: str, tmp_path: Path) -> None:
    """RUNDCTL_HOME on a full file system: the upper cannot be copied, or, where it can be reflinked, need not be."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
    try:
        home = _make_home(disk, template.strip())
        used = int(subprocess.run(["du", "-sm", disk], capture_output=True, check=True).stdout.split()[0])
        subprocess.run(["mount", "-o", f"remount,size={used + 8}m", disk], check=True)
        with (disk / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        done = cli("run", "--bundle", str(bundle("/bin/true")), "e", env=home.env, code=1)
        assert b"make the upper layer" in done.stderr
        assert b"o space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert _is_intact(home.template)
    finally:
        subprocess.run(["umount", disk], check=True)
