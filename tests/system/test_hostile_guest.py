"""A container that has taken over its guest's kernel ends its own VM at most: template, other containers and host stay as they are.

The containers here have every capability, a writable /sys and /proc, and no seccomp filter: root in the guest, without a container around it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.settings import HOME
from rundctl.engine.template import store
from rundctl.host import files, patience
from rundctl.oci.linux import CAPABILITIES

from .conftest import Cli, JsonDict, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

END_S = patience.seconds(60.0)
KILL_S = patience.seconds(30.0)  # on any machine
COMPLAINTS = 5000  # of QEMU, some 60 bytes each
LOG_MAX = 64 * 1024
NODE = 'node() { mknod "$1" "$2" $(tr : " " < "$3"); }; '

# What the container does; the exit record's reason; the exit codes it may have.
ENDS: dict[str, tuple[str, str, set[int]]] = {
    "panic": ("echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero", "qemu", {255}),
    "reboot(2)": ("reboot -f; sleep 1000", "container", {128 + 1}),  # of a pid namespace: pid_namespaces(7)
    "power off(2)": ("poweroff -f; sleep 1000", "container", {128 + 2}),
    "memory": ("tail /dev/zero", "container", {1, 128 + 9}),
    "own disk gone": (
        "cd /sys/bus/virtio/drivers/virtio_blk; set -- virtio*; echo $1 > unbind; echo x > /new || exit 7",
        "container",
        {7},
    ),
    # The agent holds the port, and no one else may open it: the driver has to let go of it first.
    "agent's channel": (
        (
            f"{NODE} cd /sys/bus/virtio/drivers/virtio_console; set -- virtio*; echo $1 > unbind; echo $1 > bind; sleep 1; "
            "node /dev/port c /sys/class/virtio-ports/*/dev; cat /dev/urandom > /dev/port; sleep 1000"
        ),
        "agent",
        {255},
    ),
}  # fmt: skip

# The same through SysRq, which Debian's kernel has and the lean one has not.
SYSRQ_ENDS: dict[str, tuple[str, str, set[int]]] = {
    "crash": ("echo c > /proc/sysrq-trigger", "qemu", {255}),
    "reset": ("echo b > /proc/sysrq-trigger", "qemu", {255}),
    "power off": ("echo o > /proc/sysrq-trigger; sleep 1000", "qemu", {255}),
    "kill all": ("echo i > /proc/sysrq-trigger; sleep 1000", "container", {128 + 9}),
}

# What leaves a VM that lives and answers nobody: a kill ends it.
HANGS: dict[str, str] = {
    "memory in files": (  # the kernel kills the container, or thrashes: it can drop nothing but programs
        "mkdir /fill; mount -t tmpfs -o size=100% tmpfs /fill; cat /dev/zero > /fill/a; tail /dev/zero"
    ),
    "own disk": (  # a damaged ext4 may end the container as well, or keep the kernel busy
        f"{NODE} node /dev/disk b /sys/class/block/vda/dev; dd if=/dev/urandom of=/dev/disk bs=1M count=4; sync; "
        "echo 3 > /proc/sys/vm/drop_caches; while :; do ls -R /; echo x > /new; sleep 0.1; done"
    ),
    "panic": "echo 0 > /proc/sys/kernel/panic; echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero",
    "agent's channel": ("cd /sys/bus/virtio/drivers/virtio_console; set -- virtio*; echo $1 > unbind; sleep 1000"),
    "lower": (
        "cd /sys/bus/virtio/drivers/9pnet_virtio; for device in virtio*; do echo $device > unbind & done; "
        "while sleep 1; do ls /bin; done"
    ),
}


def _take_over(config: JsonDict) -> None:
    for kind in ("bounding", "effective", "permitted", "inheritable"):
        config["process"]["capabilities"][kind] = sorted(CAPABILITIES)
    config["process"]["noNewPrivileges"] = False
    config["linux"]["maskedPaths"] = []
    config["linux"]["readonlyPaths"] = []
    # The guest's own disks and ports, which a container may not open otherwise: here the whole guest is hostile.
    config["linux"].setdefault("resources", {})["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in config["mounts"]:
        if mount["destination"] == "/sys":
            mount["options"].remove("ro")


def _home() -> str:
    return os.environ.get("RUNDCTL_HOME", HOME)


def _templates() -> dict[str, list[str]]:
    """Keys of the templates whose files are what their manifests say, and all names in their directories."""
    root = Path(store.root(_home()))
    intact = [entry.key for entry in store.entries(_home()) if entry.intact]
    return {key: sorted(str(path) for path in (root / key).rglob("*")) for key in intact}


@pytest.fixture(autouse=True)
def same_templates(template: str) -> Iterator[None]:
    """No file of a template is touched, and none is added."""
    before = _templates()
    assert template.strip() in before
    yield
    after = _templates()
    assert {key: after.get(key) for key in before} == before


@pytest.fixture(scope="session", autouse=True)
def same_contents_after_the_whole_suite(template: str) -> Iterator[None]:
    """When the last test is over, every template is byte by byte what it was when it was built, whatever ran before this file's tests."""
    yield
    wrong = []
    for entry in store.entries(_home()):
        for name in store.FILES if entry.intact else ():
            fd = os.open(f"{store.root(_home())}/{entry.key}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            if files.content_digest(fd) != entry.manifest["files"][name]["digest"]:
                wrong.append(f"{entry.key}/{name}")
            os.close(fd)
    assert wrong == []
    assert template.strip() in _templates()


@pytest.fixture
def with_sysrq(stock_kernel: str, configure: Callable[..., None]) -> None:
    """Containers of this test run on Debian's kernel."""
    configure(kernel=stock_kernel)


@pytest.fixture
def bystander(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> Iterator[Path]:
    """Another container of the same template, which writes to a volume; its growth shows that it lives."""
    ticks = tmp_path / "volume"
    ticks.mkdir()

    def change(config: JsonDict) -> None:
        config["mounts"].append({"destination": "/v", "type": "bind", "source": str(ticks), "options": ["bind"]})

    cli.create("bystander", bundle("/bin/sh", "-c", "while echo; do sleep 0.2; done >> /v/ticks", change=change))
    cli("start", "bystander")
    eventually((ticks / "ticks").exists, "the bystander writes")
    yield ticks / "ticks"
    seen = (ticks / "ticks").stat().st_size
    eventually(lambda: (ticks / "ticks").stat().st_size > seen + 2, "the other container goes on")
    assert cli.status("bystander") == "running"


def _record(cli: Cli, container_id: str) -> dict[str, str]:
    lines = (cli.root / container_id / "exit").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


@pytest.mark.parametrize("attack", ENDS)
def test_it_ends_with_a_reason(cli: Cli, bundle, bystander: Path, attack: str) -> None:
    _ends(cli, bundle, attack, *ENDS[attack])


@pytest.mark.parametrize("attack", SYSRQ_ENDS)
def test_debian_s_kernel_ends_with_a_reason(with_sysrq: None, cli: Cli, bundle, bystander: Path, attack: str) -> None:
    _ends(cli, bundle, attack, *SYSRQ_ENDS[attack])


def _ends(cli: Cli, bundle, attack: str, script: str, reason: str, codes: set[int]) -> None:
    cli.create("hostile", bundle("/bin/sh", "-c", script, change=_take_over))
    cli("start", "hostile")
    eventually(lambda: cli.status("hostile") == "stopped", f"{attack}: the VM ends", END_S)
    record = _record(cli, "hostile")
    assert record["reason"] == reason, record
    assert int(record["code"]) in codes, record
    assert record["detail"] or reason == "container"
    cli("delete", "hostile")


SAY = f'{NODE} node /dev/words c /sys/class/mem/kmsg/dev; say() {{ printf "<1>$1\\n" > /dev/words; }}; '

PANICS: dict[str, tuple[str, bytes]] = {
    "its kernel's": (ENDS["panic"][0], b"Out of memory: compulsory panic_on_oom is enabled"),
    "made up": (
        f"{SAY} say 'Kernel panic - not syncing: \\033[2Jgone'; echo 0 > /proc/sys/kernel/printk; {ENDS['panic'][0]}",
        b"?[2Jgone",
    ),
}


@pytest.mark.parametrize("words", PANICS)
def test_who_waits_for_the_container_hears_why_its_kernel_panicked(cli: Cli, bundle, words: str) -> None:
    """In plain characters, whatever they are."""
    script, why = PANICS[words]
    panicked = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=_take_over)), "hostile", code=255)
    reason = b"qemu exited with status 0: the guest's kernel panicked: "
    assert panicked.stderr == b"rundctl: container hostile ended: " + reason + why + b"\n"


def test_what_a_guest_says_on_its_console_has_a_bound(cli: Cli, bundle) -> None:
    script = (
        f"{SAY} i=0; while [ $i -lt 3000 ]; do say 'again and again and again'; i=$((i+1)); done; say gone; sleep 1000"
    )
    cli.create("hostile", bundle("/bin/sh", "-c", script, change=_take_over))
    cli("start", "hostile")
    log = cli.root / "hostile/qemu.log"
    eventually(lambda: log.read_bytes().rstrip().endswith(b"gone"), "the guest has said all", END_S)
    assert LOG_MAX // 2 < log.stat().st_size <= LOG_MAX
    cli("kill", "hostile", "KILL")
    cli.wait_status("hostile", "stopped")
    cli("delete", "hostile")


@pytest.mark.parametrize("attack", HANGS)
def test_a_guest_that_hangs_is_killed(cli: Cli, bundle, bystander: Path, tmp_path: Path, attack: str) -> None:
    ready, go = tmp_path / "ready", os.pipe()
    script = f"echo ready; read go; {HANGS[attack]}"
    with ready.open("wb") as stdout:
        cli.create("hostile", bundle("/bin/sh", "-c", script, change=_take_over), stdin=go[0], stdout=stdout)
    os.close(go[0])
    cli("start", "hostile")
    eventually(lambda: ready.read_bytes() == b"ready\n", f"{attack} begins", END_S)
    os.write(go[1], b"\n")
    os.close(go[1])
    time.sleep(2)  # what hangs cannot say that it does
    before = time.monotonic()
    killed = cli("kill", "hostile", "KILL", code=None)
    cli.wait_status("hostile", "stopped")
    assert time.monotonic() - before < KILL_S
    if (cli.root / "hostile/exit").exists():  # it ended by itself, before or when it was told to
        assert _record(cli, "hostile")["reason"] in ("container", "qemu", "agent")
    else:  # its shim was killed
        assert killed.returncode == 0, killed.stderr
    cli("delete", "hostile")


def test_there_is_no_export_of_volumes_without_volumes(sh) -> None:
    said = sh(
        "mkdir /v; cat /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag | tr '\\0' '\\n'; "
        "mount -t 9p -o trans=virtio,version=9p2000.L volumes /v && echo mounted; exit 0",
        change=_take_over,
    )
    assert said.stdout.split() == [b"rootfs"]
    assert said.stderr.count(b"mounting volumes on /v failed: No such") == 1, said.stderr


def test_what_qemu_says_of_a_guest_has_a_bound(cli: Cli, bundle, tmp_path: Path) -> None:
    program = tmp_path / "volume/qemu_words"
    program.parent.mkdir()
    source = Path(__file__).with_name("qemu_words.c")
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)

    def change(config: JsonDict) -> None:
        _take_over(config)
        config["mounts"].append({"destination": "/v", "type": "bind", "source": str(program.parent)})

    script = (
        "cp /v/qemu_words /tmp; cd /sys/bus/virtio/drivers/9pnet_virtio; "
        'for device in virtio*; do [ "$(cat $device/mount_tag)" = volumes ] && break; done; '
        f"/tmp/qemu_words $(readlink -f $device)/.. {COMPLAINTS}; sleep 1000"
    )
    with (tmp_path / "out").open("wb") as stdout:
        cli.create("hostile", bundle("/bin/sh", "-c", script, change=change), stdout=stdout)
    cli("start", "hostile")
    eventually(lambda: (tmp_path / "out").read_bytes() == b"done\n", "QEMU has heard all", END_S)
    log = (cli.root / "hostile/qemu.log").read_bytes()
    assert LOG_MAX // 2 < len(log) <= LOG_MAX, log[:1000]
    assert log.startswith(b"qemu")
    assert cli.status("hostile") == "running"
    cli("delete", "--force", "hostile")


def test_only_root_can_read_a_template(template: str) -> None:
    root = Path(store.root(_home()))
    assert stat.S_IMODE((root / template.strip()).stat().st_mode) == 0o700
    for name in store.FILES:
        status = (root / template.strip() / name).stat()
        assert status.st_uid == 0
        assert stat.S_IMODE(status.st_mode) & ~0o600 == 0
