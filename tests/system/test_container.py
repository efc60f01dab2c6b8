"""What config.json asks for is what the container's process sees."""

from __future__ import annotations

import stat
import time
from pathlib import Path

from .conftest import DEADLINE_S, Cli, JsonDict


def _status(sh, field: str, **options) -> str:
    lines = sh("cat /proc/self/status", **options).stdout.decode().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


def test_environment_cwd_and_arguments(sh) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["env"] = ["PATH=/bin", "A=b c", "EMPTY="]
        config["process"]["cwd"] = "/made/for/it"
        config["process"]["args"] += ["zero", "one two", ""]

    out = sh('echo "$A|$EMPTY|$HOME|$(pwd)|$0|$1|$2|$#"', change=change).stdout.decode()
    assert out == "b c||/root|/made/for/it|zero|one two||2\n"


def test_user_groups_and_umask(sh) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027}

    out = sh("id -u; id -g; id -G; umask; echo $HOME; echo ok > /dev/stdout", change=change).stdout.decode().split("\n")
    assert out[:6] == ["1000", "1001", "1001 5 7", "0027", "/home/user", "ok"]


def test_capabilities(sh) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["capabilities"] = {
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        }
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    lines = sh("cat /proc/self/status", change=change).stdout.decode().splitlines()
    caps = {line.split(":")[0]: int(line.split(":")[1], 16) for line in lines if line.startswith("Cap")}
    kill, chown = 1 << 5, 1 << 0
    assert caps["CapBnd"] == kill | chown
    assert caps["CapAmb"] == kill
    assert caps["CapInh"] == kill
    assert caps["CapPrm"] == kill  # execve by an ordinary user keeps the ambient ones only (capabilities(7))


def test_no_new_privs_and_oom_score(sh) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["noNewPrivileges"] = True
        config["process"]["oomScoreAdj"] = 321

    out = sh("grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj", change=change).stdout.decode().split()
    assert out == ["NoNewPrivs:", "1", "321"]


def test_rlimits(sh) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["rlimits"] = [
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 1048576},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]

    assert sh("ulimit -n; ulimit -Hn; ulimit -c", change=change).stdout.split() == [b"100", b"1048576", b"0"]


def test_namespaces_and_pid_1(sh) -> None:
    out = sh("echo $$; ls /proc | grep -c '^[0-9]'; ip link | grep -c ': '; ip link show lo").stdout.decode()
    assert out.splitlines()[0] == "1"
    assert int(out.splitlines()[1]) <= 6  # the shell, its pipe, no agent and no kernel thread
    assert out.splitlines()[2] == "1"
    assert "UP" in out


def test_hostname_and_domainname(sh) -> None:
    def change(config: JsonDict) -> None:
        config["hostname"] = "box"
        config["domainname"] = "example.test"

    assert sh("hostname; cat /proc/sys/kernel/domainname", change=change).stdout == b"box\nexample.test\n"


def test_default_devices_and_links(sh) -> None:
    script = "for d in null zero full random urandom tty; do stat -c '%n %F %a %t:%T' /dev/$d; done; ls -l /dev/ptmx /dev/fd /dev/stdout"
    out = sh(script).stdout.decode()
    assert "/dev/null character special file 666 1:3" in out
    assert "/dev/full character special file 666 1:7" in out
    assert "/dev/ptmx -> pts/ptmx" in out
    assert "/dev/fd -> /proc/self/fd" in out


def test_devices(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["devices"] = [
            {"path": "/dev/my/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o606, "uid": 1, "gid": 2}
        ]

    assert sh("stat -c '%a %u %g' /dev/my/null; echo x > /dev/my/null", change=change).stdout == b"606 1 2\n"


def test_mounts(sh) -> None:
    def change(config: JsonDict) -> None:
        config["mounts"] += [
            {
                "destination": "/scratch",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "noexec", "size=1m", "mode=1777"],
            },
            {"destination": "/ro", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
            {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
        ]

    script = "cat /proc/mounts; stat -c %a /scratch; echo x > /ro/x || echo refused; cat /etc/hosts; ls /dev/mqueue /dev/pts > /dev/null && echo fine"
    out = sh(script, change=change).stdout.decode()
    mounts = {line.split()[1]: line.split()[2:4] for line in out.splitlines() if len(line.split()) == 6}
    assert mounts["/"][0] == "overlay"
    assert mounts["/proc"][0] == "proc"
    assert mounts["/dev/mqueue"][0] == "mqueue"
    assert mounts["/sys/fs/cgroup"][0] == "cgroup2"
    assert {"nosuid", "noexec", "size=1024k"} <= set(mounts["/scratch"][1].split(","))
    assert "1777\nrefused\n127.0.0.1 localhost\nfine\n" in out


def test_no_way_out_of_the_rootfs(sh) -> None:
    out = sh("cat /proc/mounts; ls /; ls /proc/1/root/").stdout.decode()
    for hidden in ("/lower", "/upper", "9p", "rootfs"):
        assert hidden not in out.replace("lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w", "")


def test_the_rootfs_is_volatile_and_writable(sh, rootfs: Path) -> None:
    assert sh("echo data > /bin/new; rm /bin/busybox; ls /bin/new").stdout == b"/bin/new\n"
    assert (rootfs / "bin/busybox").exists()
    assert not (rootfs / "bin/new").exists()
    sh("test ! -e /bin/new")


def test_readonly_rootfs(sh) -> None:
    def change(config: JsonDict) -> None:
        config["root"]["readonly"] = True

    assert b"Read-only" in sh("echo x > /file", code=1, change=change).stderr


def test_masked_and_readonly_paths(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["maskedPaths"] = ["/etc/passwd", "/usr", "/missing"]
        config["linux"]["readonlyPaths"] = ["/home", "/missing"]

    out = sh(
        "wc -c < /etc/passwd; ls -A /usr | wc -l; touch /home/x 2>/dev/null || echo ro; touch /tmp/x && echo rw",
        change=change,
    )
    assert out.stdout.split() == [b"0", b"0", b"ro", b"rw"]


def test_sysctl(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096"}

    assert sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax", change=change).stdout == b"1\n4096\n"


def test_seccomp(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
        }

    for nnp in (False, True):

        def both(config: JsonDict, nnp: bool = nnp) -> None:
            change(config)
            config["process"]["noNewPrivileges"] = nnp

        done = sh("grep Seccomp: /proc/self/status; mkdir /tmp/x", code=1, change=both)
        assert done.stdout.split() == [b"Seccomp:", b"2"]
        assert b"Cannot assign requested address" in done.stderr


def test_pids_limit(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["resources"] = {"pids": {"limit": 20}}

    out = sh("cat /sys/fs/cgroup/pids.max; for i in $(seq 40); do sleep 5 & done", code=None, change=change)
    assert out.stdout.split()[0] == b"20"
    assert b"fork" in out.stderr


def test_binds(sh, tmp_path: Path) -> None:
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro/file").write_text("read me\n")
    (tmp_path / "single").write_text("one file\n")
    (tmp_path / "rw/owned").write_text("")
    (tmp_path / "rw/owned").chmod(0o640)

    def change(config: JsonDict) -> None:
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_CHOWN")
        config["mounts"] += [
            {
                "destination": "/data",
                "type": "bind",
                "source": str(tmp_path / "rw"),
                "options": ["rbind", "rw", "rprivate"],
            },
            {
                "destination": "/ro",
                "type": "none",
                "source": str(tmp_path / "ro"),
                "options": ["bind", "ro", "nosuid", "noexec"],
            },
            {"destination": "/etc/hosts", "type": "bind", "source": str(tmp_path / "single"), "options": ["bind"]},
        ]

    script = """cat /ro/file /etc/hosts; echo written > /data/new; chown 1000:1001 /data/new; stat -c %a /data/owned
    echo x > /ro/x || echo refused; echo appended >> /etc/hosts; ls /data/.. > /dev/null; ls /data/../../../ | wc -l"""
    out = sh(script, change=change).stdout.decode()
    assert out.startswith("read me\none file\n640\nrefused\n")
    new = tmp_path / "rw/new"
    assert new.read_text() == "written\n"
    assert (new.stat().st_uid, new.stat().st_gid) == (1000, 1001)
    assert (tmp_path / "single").read_text() == "one file\nappended\n"
    assert not (tmp_path / "ro/x").exists()


def test_binds_are_coherent_with_the_host(cli: Cli, bundle, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()

    def change(config: JsonDict) -> None:
        config["mounts"].append({"destination": "/s", "type": "bind", "source": str(shared), "options": ["bind"]})

    script = "until test -e /s/from-host; do sleep 0.05; done; cat /s/from-host; echo hi > /s/from-guest"
    with cli.popen("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=change)), "v") as run:
        (shared / "part").write_text("hello\n")
        (shared / "part").rename(shared / "from-host")
        assert run.wait(DEADLINE_S) == 0
    assert (shared / "from-guest").read_text() == "hi\n"


def test_shm_of_the_host_becomes_the_guests(sh) -> None:
    """podman binds a tmpfs of the host onto /dev/shm; in a VM shared memory is the VM's."""

    def change(config: JsonDict) -> None:
        config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/dev/shm"]
        config["mounts"].append(
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["bind", "nosuid"]}
        )

    assert b"tmpfs" in sh("grep ' /dev/shm ' /proc/mounts && echo x > /dev/shm/x", change=change).stdout
    assert not Path("/dev/shm/x").exists()


def test_propagation(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["rootfsPropagation"] = "shared"
        config["mounts"].append({"destination": "/p", "type": "tmpfs", "source": "tmpfs", "options": ["slave"]})

    out = sh("cat /proc/self/mountinfo", change=change).stdout.decode().splitlines()
    root = next(line for line in out if line.split()[4] == "/")
    assert "shared:" in root


def test_each_clone_is_its_own_machine(sh) -> None:
    script = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; head -c 16 /dev/urandom | md5sum; hostname; date +%s"

    def change(config: JsonDict) -> None:
        del config["hostname"]

    one = sh(script, change=change).stdout.decode().splitlines()
    before = time.time()
    two = sh(script, change=change).stdout.decode().splitlines()
    after = time.time()
    for mine, other in zip(one[:4], two[:4], strict=True):
        assert mine
        assert mine != other
    assert len(one[1]) == 32
    assert before - 2 < int(two[4]) < after + 1


def test_time_namespace(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = {"boottime": {"secs": 100000, "nanosecs": 0}}

    assert float(sh("cat /proc/uptime", change=change).stdout.split()[0]) > 100000


def test_file_types_of_the_lower_survive(sh, rootfs: Path) -> None:
    assert stat.S_IMODE((rootfs / "tmp").stat().st_mode) == 0o1777
    assert sh(
        "stat -c '%a %u' /tmp; readlink /bin/ls; mv /etc/hosts /etc/moved && cat /etc/moved"
    ).stdout.decode().split("\n")[:2] == ["1777 0", "busybox"]
