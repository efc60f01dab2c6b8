"""The lean kernel does what containers need: each feature is used, in a container and on the bare guest with devices that rundctl adds later.

tools/setup has built the kernel, and it is the default of all other suites; what builds a second one is tests/rebuild.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs import combinations
from rundctl.guest import cpio, initramfs, kernel, kernel_build, kernel_default, kernel_options
from rundctl.vmm import binary

from . import lean_data
from .conftest import RUNDCTL, Cli, JsonDict

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm
BUILD_S = 5400
BOOT_S = 240
HOME = settings.load().home
FEATURES = 47  # lines of kernel_features.c in a container
DEVICES = 8
IDLE_S = 10  # as in kernel_features.c
PMEM_MIB = 16
GAIN_MIB = 20  # of 128, more for the container than Debian's kernel leaves
VMLINUX_MIB = 24  # in memory; the goal of 8 MiB compressed is bench/kernel.py's
NOISY = {"khungtaskd", "kcompactd0", "khugepaged", "ksmd", "watchdog/0", "watchdogd", "kswapd1"}


@pytest.fixture(scope="module")
def lean() -> kernel.Kernel:
    """The lean kernel of this release; the command builds it if nobody has yet."""
    before = kernel_default.name(HOME)
    argv = [RUNDCTL, "kernel", "build", "--keep-default"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=BUILD_S, text=True, check=True)
    assert kernel_default.name(HOME) == before
    found = kernel.Kernel(str(Path(done.stdout.strip()).parent))
    assert found.name == kernel_build._recipe("").name()
    return found


@pytest.fixture
def with_lean(lean: kernel.Kernel, configure: Callable[..., None]) -> kernel.Kernel:
    """Containers of this test run on the lean kernel."""
    configure(kernel=lean.name)
    return lean


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kernel_features.c, compiled."""
    program = tmp_path_factory.mktemp("checker") / "kernel_features"
    source = Path(__file__).with_name("kernel_features.c")
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def checker_rootfs(checker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with busybox, the checker and a program for i386."""
    rootfs = tmp_path_factory.mktemp("features") / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "etc", "mnt"):
        (rootfs / name).mkdir(parents=True)
    for name in ("busybox", "sh", "ip", "ping", "cat", "brctl", "uname", "sleep", "zcat", "ls", "mount"):
        shutil.copy2("/bin/busybox", rootfs / "bin" / name)
    shutil.copy2(checker, rootfs / "kernel_features")
    exit_42 = ".globl _start\n_start: mov $1, %eax\nmov $42, %ebx\nint $0x80\n"
    argv = ["gcc", "-m32", "-static", "-nostdlib", "-x", "assembler", "-", "-o", rootfs / "i386"]
    subprocess.run(argv, input=exit_42.encode(), check=True)
    return rootfs


@pytest.fixture
def privileged(checker_rootfs: Path) -> Callable[[JsonDict], None]:
    """Everything that a kernel can be asked for: all capabilities, nothing masked."""
    capabilities = [line.split()[1] for line in _capabilities()]

    def change(config: JsonDict) -> None:
        config["root"] = {"path": str(checker_rootfs), "readonly": False}
        config["process"]["user"] = {"uid": 0, "gid": 0}
        config["process"]["noNewPrivileges"] = False
        config["process"]["capabilities"] = dict.fromkeys(
            ("bounding", "effective", "permitted", "inheritable"), capabilities
        )
        config["linux"].pop("seccomp", None)
        config["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
        config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []

    return change


def _capabilities() -> list[str]:
    header = Path("/usr/include/linux/capability.h").read_text()
    return [line for line in header.splitlines() if re.match(r"#define CAP_[A-Z_]+\s+\d+$", line)]


def _answers(text: str) -> dict[str, str]:
    return {name: rest for name, _, rest in (line.strip().partition(" ") for line in text.splitlines()) if rest}


def _failed(answers: dict[str, str]) -> dict[str, str]:
    return {name: said for name, said in answers.items() if said != "ok"}


def test_it_is_the_default(lean: kernel.Kernel) -> None:
    assert kernel_default.name(HOME) == lean.name


def test_it_has_no_modules_and_its_initramfs_is_the_agent(lean: kernel.Kernel) -> None:
    assert lean.modules() == []
    assert frozenset(lean.able()) == combinations.KERNELS["lean"]
    alone = initramfs.build(lean, b"agent")
    assert alone.count(b"070701") == 7  # dev, modules, proc, sys; dev/console; init; the trailer
    assert set(lean.manifest()["controllers"]) == {"cpu", "memory", "pids", "io", "cpuset", "hugetlb"}


def test_each_feature_in_a_container(sh, with_lean: kernel.Kernel, privileged) -> None:
    answers = _answers(sh("/kernel_features", change=privileged).stdout.decode())
    assert _failed(answers) == {}
    assert len(answers) == FEATURES


def test_its_configuration_is_what_was_asked(sh, with_lean: kernel.Kernel, privileged) -> None:
    config = gzip.decompress(sh("cat /proc/config.gz", change=privileged).stdout).decode()
    options = kernel_options.load()
    # What this series has never heard of is not in its configuration in any way; the build knows by its Kconfig files.
    kernel_options.verify(options, config, set(re.findall(r"CONFIG_(\w+)", config)))
    assert config == Path(with_lean.directory, "config").read_text()


def test_networks_in_a_container(sh, with_lean: kernel.Kernel, privileged) -> None:
    script = """
    set -e
    ip link set lo up
    ping -c 1 -W 5 127.0.0.1 >/dev/null
    ping -c 1 -W 5 ::1 >/dev/null
    ip link add v0 type veth
    ip link add b0 type bridge
    ip link add d0 type dummy
    ip link add link d0 name m0 type macvlan
    ip link add link d0 name d0.5 type vlan id 5
    ip addr add 10.9.8.7/24 dev d0
    ip -6 addr add fd00::1/64 dev d0
    ip link set d0 up
    ip rule add from 10.9.8.7 table 5
    ls /sys/class/net /proc/sys/net/bridge
    """
    names = set(sh(script, change=privileged).stdout.decode().split())
    assert {"lo", "v0", "veth0", "b0", "d0", "m0", "d0.5", "bridge-nf-call-iptables"} <= names


def test_masquerading_by_nftables(sh, with_lean: kernel.Kernel, privileged) -> None:
    rule, count = lean_data.masquerading_rule()
    answers = sh("/kernel_features netlink", stdin=rule, change=privileged).stdout.decode().splitlines()
    assert answers == [f"{number} Success" for number in range(1, count + 1)]


def test_targets_and_matches_of_iptables(sh, with_lean: kernel.Kernel, privileged) -> None:
    script = "/kernel_features >/dev/null; cat /proc/net/ip_tables_targets; echo; cat /proc/net/ip_tables_matches /proc/net/ip6_tables_targets"
    names = set(sh(script, change=privileged).stdout.decode().split())
    assert {"MASQUERADE", "DNAT", "SNAT", "REDIRECT", "REJECT", "MARK", "LOG", "TCPMSS"} <= names
    assert {
        "conntrack",
        "addrtype",
        "comment",
        "multiport",
        "statistic",
        "mark",
        "limit",
        "state",
        "tcp",
        "udp",
    } <= names


def test_programs_for_i386(sh, with_lean: kernel.Kernel, privileged) -> None:
    sh("exec /i386", code=42, change=privileged)


def test_an_ordinary_container(sh, with_lean: kernel.Kernel) -> None:
    release = sh("uname -r; id -u; echo x >/tmp/x && cat /tmp/x; cat /proc/self/status | grep Seccomp:").stdout.decode()
    assert re.match(r"6\.\d+\.\d+-rundctl\n0\nx\n", release)


def test_limits_hold(cli: Cli, bundle, with_lean: kernel.Kernel) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["resources"] = {"pids": {"limit": 5}, "memory": {"limit": 64 << 20}}

    where = bundle("/bin/sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max", change=change)
    assert cli("run", "--bundle", str(where), "limits").stdout.split() == [b"5", str(64 << 20).encode()]


def _memory_available_kib(sh) -> int:
    out = sh("cat /proc/meminfo").stdout.decode()
    return int(re.search(r"MemAvailable:\s+(\d+) kB", out)[1])


def test_it_leaves_more_memory_than_debian_s(sh, lean: kernel.Kernel, stock_kernel: str, configure) -> None:
    found = {}
    for name in (stock_kernel, lean.name):
        configure(kernel=name, memory_mib=128)
        found[name] = _memory_available_kib(sh)
    assert found[lean.name] - found[stock_kernel] >= GAIN_MIB * 1024, found
    assert os.path.getsize(lean.vmlinux) < VMLINUX_MIB << 20


def test_it_boots_faster_than_debian_s(
    cli: Cli, bundle, lean: kernel.Kernel, stock_kernel: str, settle: Callable[..., None]
) -> None:
    where = str(bundle("/bin/true"))

    def cold_s(name: str) -> float:
        settle(kernel=name)
        before = time.monotonic()
        cli("run", "--template", "off", "--bundle", where, "cold")
        return time.monotonic() - before

    # In turn, and the best of each: what else runs on the machine can only add.
    rounds = [(cold_s(stock_kernel), cold_s(lean.name)) for _ in range(3)]
    stock, ours = (min(column) for column in zip(*rounds, strict=True))
    assert 1.5 * ours < stock, rounds


def test_use_and_list(lean: kernel.Kernel, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "kernels").mkdir(parents=True)
    for name in kernel.names(HOME):
        (home / "kernels" / name).symlink_to(f"{HOME}/kernels/{name}")
    environment = {**os.environ, "RUNDCTL_HOME": str(home)}
    subprocess.run([RUNDCTL, "kernel", "use", lean.name], env=environment, check=True)
    listed = subprocess.run([RUNDCTL, "kernel", "list"], env=environment, capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    assert [row[0] for row in rows if row[1:] == ["default"]] == [lean.name]
    assert {row[0] for row in rows} == set(kernel.names(HOME))


@dataclass
class Bare:
    """What the checker printed as /init of a guest."""

    answers: dict[str, str]
    threads: set[str]
    console: str


@pytest.fixture(scope="module")
def bare(lean: kernel.Kernel, checker: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """One boot of the bare guest, with every device."""
    directory = tmp_path_factory.mktemp("bare")
    archive = cpio.Archive()
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", checker.read_bytes(), 0o755)
    (directory / "initramfs").write_bytes(archive.close())
    pages = [bytes([number]) * lean_data.BLOCK for number in (1, 2, 3)]
    (directory / "pmem1").write_bytes(lean_data.erofs_image(pages))
    for name in ("pmem0", "pmem1"):
        with (directory / name).open("ab") as file:
            file.truncate(PMEM_MIB << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-b", "4096", directory / "pmem0"], check=True)
    done = subprocess.run(_argv(lean, directory), capture_output=True, text=True, timeout=BOOT_S, check=True)
    console = (directory / "console").read_text(errors="replace")
    lines = [line for line in console.splitlines() if not line.startswith("[")]
    assert "end ok" in lines, (console[-3000:], done.stderr)
    threads = {line.split()[1] for line in lines if line.startswith("thread ")}
    told = [line for line in lines if not line.startswith(("thread", "meminfo", "end"))]
    return Bare(_answers("\n".join(told)), threads, console)


def _argv(lean: kernel.Kernel, directory: Path) -> list[str]:
    # fmt: off
    argv = [
        binary.find(binary.Choice(HOME)), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35,hpet=off",
        "-accel", "tcg", "-cpu", "max", "-m", "128M,slots=4,maxmem=2G", "-kernel", lean.vmlinux,
        "-initrd", str(directory / "initramfs"), "-append", "console=ttyS0 panic=-1 reboot=t quiet tsc=reliable no_timer_check",
        "-chardev", f"file,id=console,path={directory}/console", "-serial", "chardev:console",
        "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        "-device", "vmgenid,guid=auto", "-device", "pcie-root-port,id=spare,chassis=1,addr=0x1e",
    ]
    # fmt: on
    for index in (0, 1):
        memory = f"memory-backend-file,id=mem{index},share=on,mem-path={directory}/pmem{index},size={PMEM_MIB}M"
        argv += [
            "-object",
            memory,
            "-device",
            f"virtio-pmem-pci,id=pmem{index},memdev=mem{index},addr={0x10 + index:#x}",
        ]
    return argv


def test_devices_on_the_bare_guest(bare: Bare) -> None:
    answers = {name: said for name, said in bare.answers.items() if name != "idle-timer-interrupts"}
    assert _failed(answers) == {}
    assert len(answers) == DEVICES


def test_an_idle_guest_is_near_silent(bare: Bare) -> None:
    assert int(bare.answers["idle-timer-interrupts"]) / IDLE_S < 10
    assert bare.threads
    assert bare.threads & NOISY == set()


def test_nothing_went_wrong_at_boot(bare: Bare) -> None:
    assert not re.search(r"WARNING:|BUG:|Call Trace|Oops|rcu.*stall", bare.console)


def test_templates_of_it_name_it(cli: Cli, with_lean: kernel.Kernel) -> None:
    key = cli("template", "build").stdout.decode().strip()
    assert json.loads(cli("template", "show", key).stdout)["kernel"] == with_lean.name
