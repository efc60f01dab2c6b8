"""System tests: the installed ``rundctl``, real VMs, and after every test a look for what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from rundctl.engine import settings
from rundctl.guest import kernel
from rundctl.host import patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inside

from . import under_kvm

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
DEADLINE_S = patience.seconds(120.0)
JsonDict = dict[str, Any]
T = TypeVar("T")


def pytest_configure(config: pytest.Config) -> None:
    """`make test-kvm`: reports of machines with KVM in place of runs on the host."""
    if under_kvm.ASKED_FOR or inside.INSIDE:
        options = {"by_file": True, "left_out": under_kvm.left_out}
        inside.install(config, Path(__file__).resolve().parent, inside.run_with_kvm, **options)


def eventually(probe: Callable[[], T], what: str | Callable[[], str], timeout_s: float = DEADLINE_S) -> T:
    """Poll until the probe is true: for states of the kernel that send no event. ``what`` is only called if it never is."""
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < deadline, f"never happened: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)
    return value


class Cli:
    """The command, with a ``--root`` of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return [RUNDCTL, "--root", str(self.root), *arguments]

    def __call__(
        self, *arguments: str, code: int | None = 0, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a verb; the exit code must be ``code`` unless that is None."""
        done = self._outliving(arguments, env) if "create" in arguments else self._run(arguments, stdin, env)
        if code is not None:
            assert done.returncode == code, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def _run(
        self, arguments: tuple[str, ...], stdin: bytes, env: dict[str, str] | None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.argv(*arguments), input=stdin, capture_output=True, timeout=DEADLINE_S, env=env, check=False
        )

    def _outliving(self, arguments: tuple[str, ...], env: dict[str, str] | None) -> subprocess.CompletedProcess[bytes]:
        """The container has its stdio as long as it lives: a pipe would not end with the call, if that makes one against all expectation."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(
                self.argv(*arguments),
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=DEADLINE_S, env=env, check=False,
            )  # fmt: skip
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a verb and go on; stdio is given by ``options``, /dev/null otherwise."""
        stdio: JsonDict = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.argv(*arguments), **{**stdio, **options})

    def state(self, container_id: str) -> JsonDict:
        """Parsed ``state``."""
        return dict(json.loads(self("state", container_id).stdout))

    def status(self, container_id: str) -> str:
        """Status alone."""
        return str(self.state(container_id)["status"])

    def wait_status(self, container_id: str, status: str) -> None:
        """Wait until the container has this status."""
        eventually(lambda: self.status(container_id) == status, f"{container_id} {status}")

    def create(self, container_id: str, bundle: Path, *flags: str, **options: Any) -> None:
        """``create`` with stdio on /dev/null, as a supervisor does it; stderr on a file, because the container keeps it open."""
        errors = self.root.parent / "create-stderr"
        with errors.open("wb") as stderr:
            process = self.popen("create", *flags, "--bundle", str(bundle), container_id, stderr=stderr, **options)
        assert process.wait(DEADLINE_S) == 0, errors.read_text()


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busybox root file system, shared by all tests: nothing may write to it."""
    directory = tmp_path_factory.mktemp("image") / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "usr/share", "var"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    busybox = directory / "bin/busybox"
    shutil.copy2("/bin/busybox", busybox)
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    (directory / "etc/machine-id").write_text("")
    (directory / "etc/hosts").write_text("127.0.0.1 localhost\n")
    return directory


@pytest.fixture(scope="session")
def template() -> str:
    """The default template, built before any test is timed."""
    done = subprocess.run([RUNDCTL, "template", "build"], capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture
def cli(tmp_path: Path, template: str) -> Iterator[Cli]:
    """The command; containers that a test leaves are deleted, so that one failure stays one."""
    del template
    command = Cli(tmp_path / "root")
    yield command
    if not any(command.root.iterdir()):
        return  # `list` takes longer than to look
    for container in json.loads(command("list", "-f", "json").stdout or b"[]") or []:
        command("delete", "--force", container["id"], code=None)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``rundctl spec``'s config.json."""
    directory = tmp_path_factory.mktemp("spec")
    subprocess.run([RUNDCTL, "spec", "--bundle", directory], check=True)
    return (directory / "config.json").read_text()


@pytest.fixture
def spec(example: str, rootfs: Path) -> JsonDict:
    """It, without a terminal and on the shared rootfs."""
    config: JsonDict = json.loads(example)
    config["process"]["terminal"] = False
    config["root"] = {"path": str(rootfs), "readonly": False}
    return volatile(config)


def volatile(config: JsonDict) -> JsonDict:
    """Unless its annotations say otherwise, or are None: a rootfs outside of the bundle would be taken for an engine's, and be written to."""
    if config.get("annotations", {}) is not None:
        config.setdefault("annotations", {}).setdefault("io.rundctl.rootfs", "volatile")
    return config


@pytest.fixture
def bundle(spec: JsonDict, tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle that runs a command; ``change`` edits the config in place."""
    count = 0

    def make(*args: str, change: Callable[[JsonDict], object] | None = None) -> Path:
        nonlocal count
        count += 1
        config: JsonDict = json.loads(json.dumps(spec))
        config["process"]["args"] = list(args)
        if change is not None:
            change(config)
        volatile(config)
        directory = tmp_path / f"bundle{count}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


@pytest.fixture
def sh(cli: Cli, bundle: Callable[..., Path]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run a shell script in a container, in the foreground."""
    count = 0

    def run(
        script: str,
        *flags: str,
        code: int | None = 0,
        stdin: bytes = b"",
        change: Callable[[JsonDict], object] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        nonlocal count
        count += 1
        where = bundle("/bin/sh", "-c", script, change=change)
        return cli("run", *flags, "--bundle", str(where), f"sh{count}", code=code, stdin=stdin)

    return run


@pytest.fixture
def settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Settings for the containers of this test, in place of the host's, with its home."""
    home = settings.load().home

    def write(**others: str | int) -> None:
        chosen = {"home": home, **others}
        config = tmp_path / "rundctl.toml"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in chosen.items()))
        monkeypatch.setenv("RUNDCTL_CONFIG", str(config))

    return write


@pytest.fixture
def configure(settle: Callable[..., None]) -> Callable[..., None]:
    """The same, and their template is built."""

    def write(**others: str | int) -> None:
        settle(**others)
        subprocess.run([RUNDCTL, "template", "build"], capture_output=True, timeout=600, check=True)

    return write


@pytest.fixture(scope="session")
def stock_kernel() -> str:
    """Name of Debian's kernel, which tools/setup has fetched."""
    home = settings.load().home
    found = [name for name in kernel.names(home) if name.endswith("-amd64")]
    assert found, f"Debian's kernel is not in {home}: tools/setup system, or rundctl kernel fetch"
    return found[-1]


def _cgroup_suffix(root: Path) -> str:
    """How rundctl names the cgroups of containers of this root: other suites may run on this host."""
    info = root.stat()
    return f".{info.st_dev:x}-{info.st_ino:x}"


def _processes(marker: str, suffix: str) -> list[str]:
    """Processes in a cgroup of this root, or with the test's directory on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
            cgroups = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
        except OSError:
            continue
        if (marker in line or suffix in cgroups) and int(pid) != os.getpid() and not _is_zombie(pid):
            found.append(f"{pid} {line[:200]}")
    return found


def _is_zombie(pid: str) -> bool:
    """Or gone since."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _mounts(marker: str) -> list[str]:
    points = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if marker in point]


def _cgroups(suffix: str) -> list[str]:
    # Not glob: it fails if another suite's cgroup goes away while it looks.
    return [directory for directory, _, _ in os.walk("/sys/fs/cgroup") if directory.endswith(suffix)]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test no process, mount, cgroup, descriptor or file of its containers is left."""
    if "cli" in request.fixturenames:
        request.getfixturevalue("template")
    root = tmp_path / "root"
    root.mkdir()
    suffix = _cgroup_suffix(root)
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert [path.name for path in root.iterdir()] == [], "files left in --root"
    elsewhere = Path("/run/rundctl/.elsewhere")
    links = [link.name for link in elsewhere.glob(f"*@{suffix[1:]}")] if elsewhere.exists() else []
    assert links == [], "links left for --root"
    eventually(
        lambda: not _processes(str(tmp_path), suffix), lambda: f"processes left: {_processes(str(tmp_path), suffix)}"
    )
    assert _mounts(str(tmp_path)) == []
    assert _cgroups(suffix) == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def digest(data: bytes) -> str:
    """SHA-256, as ``sha256sum`` prints it."""
    return hashlib.sha256(data).hexdigest()
