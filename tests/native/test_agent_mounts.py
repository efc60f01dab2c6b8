"""The container's file tree: what is made, hidden and protected in it, and that an image's links never lead out."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from rundctl.guest import ops

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import MS_PRIVATE, MS_REC, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME = 1, 2, 4, 8, 1024, 1 << 21
MS_SLAVE, MS_SHARED = 1 << 19, 1 << 20


def run(rig, bundle, script, **parts):
    status, out, err = rig.run(bundle.shell(script, **parts))
    assert exit_code(status) == 0, err
    return out


def options(rig, bundle, path, **parts):
    """Mount flags of the topmost mount at a path."""
    lines = [line.split() for line in run(rig, bundle, "cat /proc/self/mountinfo", **parts).splitlines()]
    return [set(fields[5].split(",")) for fields in lines if fields[4] == path][-1]


def test_nothing_of_the_host_is_left(rig, bundle):
    points = [line.split()[4] for line in run(rig, bundle, "cat /proc/self/mountinfo").splitlines()]
    assert points == ["/", "/proc", "/dev"]


def test_remount_keeps_what_it_is_not_told(rig, bundle):
    tmpfs = ops.mount("tmpfs", "/mnt", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOATIME)
    assert options(rig, bundle, "/mnt", before=(tmpfs, ops.remount("/mnt", MS_RDONLY, MS_NODEV))) == {
        "ro",
        "nosuid",
        "noatime",
    }
    assert options(rig, bundle, "/mnt", before=(tmpfs, ops.remount("/mnt", MS_NOEXEC | MS_RELATIME))) == {
        "rw",
        "nosuid",
        "nodev",
        "noexec",
        "relatime",
    }
    assert options(rig, bundle, "/mnt", before=(tmpfs, ops.remount("/mnt", 0, MS_NOATIME))) == {
        "rw",
        "nosuid",
        "nodev",
        "relatime",
    }
    assert options(rig, bundle, "/mnt", before=(tmpfs,), after=(ops.remount("/mnt", MS_RDONLY),)) == {
        "ro",
        "nosuid",
        "nodev",
        "noatime",
    }


def test_recursive_remount(rig, bundle):
    mounts = (ops.mount("tmpfs", "/mnt", "tmpfs"), ops.mount("tmpfs", "/mnt/in", "tmpfs"))
    assert "ro" in options(rig, bundle, "/mnt/in", after=(*mounts, ops.remount("/mnt", MS_RDONLY, recursive=True)))
    assert "rw" in options(rig, bundle, "/mnt/in", after=(*mounts, ops.remount("/mnt", MS_RDONLY)))


def test_readonly_root(rig, bundle):
    status, _, err = rig.run(bundle.shell("touch /x", after=(ops.remount("/", MS_RDONLY),)))
    assert exit_code(status) != 0
    assert "Read-only" in err


@pytest.mark.parametrize(("flags", "words"), [(MS_SHARED, "shared:"), (MS_SLAVE | MS_REC, ""), (0, "")])
def test_propagation_of_the_new_root(rig, bundle, flags, words):
    plan = bundle.plan("cat", "/proc/self/mountinfo")
    plan.ops = tuple(ops.pivot(flags) if op.opcode == ops.Opcode.PIVOT else op for op in plan.ops)
    root = rig.run(plan)[1].splitlines()[0]
    assert (words in root) if words else ("shared:" not in root and "master:" not in root)


def test_binds_and_missing_targets(rig, bundle, tmp_path):
    (tmp_path / "file").write_text("file\n")
    (tmp_path / "directory/sub").mkdir(parents=True)
    (tmp_path / "directory/inside").write_text("inside\n")
    binds = (
        ops.bind(str(tmp_path / "file"), "/new/path/file", is_file=True),
        ops.bind(str(tmp_path / "directory"), "/other/path", recursive=True),
    )
    assert run(rig, bundle, "cat /new/path/file /other/path/inside", before=binds) == "file\ninside\n"
    assert (bundle.root / "new/path").stat().st_mode & 0o777 == 0o755


def test_recursive_bind_takes_submounts(rig, bundle, tmp_path):
    (tmp_path / "volume/sub").mkdir(parents=True)
    source = str(tmp_path / "volume")
    prepare = ops.mount("tmpfs", source + "/sub", "tmpfs")

    def plan(recursive):
        plan = bundle.shell(
            "touch /mnt/sub/x; stat -f -c %T /mnt/sub", before=(ops.bind(source, "/mnt", recursive=recursive),)
        )
        plan.ops = (plan.ops[0], prepare, *plan.ops[1:])
        return plan

    assert rig.run(plan(True))[1] == "tmpfs\n"
    assert not (tmp_path / "volume/sub/x").exists()
    assert rig.run(plan(False))[1] != "tmpfs\n"


def test_masked_paths(rig, bundle):
    (bundle.root / "etc/secret").write_text("secret")
    (bundle.root / "etc/second").write_text("secret")
    (bundle.root / "etc/keys").mkdir()
    (bundle.root / "etc/keys/key").write_text("secret")
    (bundle.root / "dev").rmdir()
    (bundle.root / "dev").mkdir()
    masks = tuple(
        ops.mask(path) for path in ("/etc/secret", "/etc/second", "/etc/keys", "/etc/missing", "/etc/secret/x")
    )
    # The container's own /dev/null is a trap: a file that anybody could fill.
    trap = (ops.mount("tmpfs", "/dev", "tmpfs"), ops.mkdir("/dev/null"))
    script = "cat /etc/secret /etc/second; ls /etc/keys; ls -l /etc/secret | head -c 1; touch /etc/keys/x 2>/dev/null || echo refused"
    assert run(rig, bundle, script, before=trap, after=masks) == "crefused\n"
    assert (bundle.root / "etc/secret").read_text() == "secret"


def test_readonly_paths(rig, bundle):
    protect = (
        ops.mount("tmpfs", "/mnt", "tmpfs"),
        ops.mkdir("/mnt/a"),
        ops.mount("tmpfs", "/mnt/a", "tmpfs"),
        ops.readonly("/mnt"),
        ops.readonly("/none"),
        ops.readonly("/proc/sys"),
    )
    script = "for f in /mnt/x /mnt/a/x; do touch $f 2>/dev/null && echo open; done; echo x 2>/dev/null > /proc/sys/kernel/hostname || echo refused; touch /tmp/y"
    assert run(rig, bundle, script, after=protect) == "refused\n"


def test_a_readonly_root_is_the_root_and_not_what_is_mounted_in_it(rig, bundle):
    (bundle.root / "self").symlink_to("/")
    for path in ("/", "/self"):
        mounted = (ops.mount("t", "/mnt", "tmpfs"),)
        shell = "touch /x; touch /mnt/x && echo $?"
        _, out, err = rig.run(bundle.shell(shell, before=mounted, after=(ops.readonly(path),)))
        assert (out, "Read-only file system" in err) == ("0\n", True)


@pytest.mark.parametrize("made", ["link", "dangling", "file"])
def test_what_is_trusted_by_its_path_is_mounted_on_no_link(rig, bundle, made):
    """CVE-2023-27561's kind."""
    (bundle.root / "elsewhere").mkdir()
    target = bundle.root / "trusted"
    target.touch() if made == "file" else target.symlink_to("/elsewhere" if made == "link" else "/none")
    result = rig.create(bundle.plan("true", before=(ops.mount("proc", "/trusted", "proc", no_link=True),)))
    assert (result.error, result.detail) == (errno.ENOTDIR, 'filesystem "proc" must be mounted on ordinary directory')
    target.unlink()
    status, out, _ = rig.run(
        bundle.shell("ls /trusted/self/stat", before=(ops.mount("proc", "/trusted", "proc", no_link=True),))
    )
    assert (exit_code(status), out) == (0, "/trusted/self/stat\n")


def test_nodes_links_and_modes(rig, bundle):
    made = (
        ops.mkdir("/dev/shm", 0o1777),
        ops.mkdir("/dev/deep/er", 0o750, 3, 4),
        ops.mkdir("/dev/shm", 0o700),
        ops.mknod("/dev/full", 0o20666, 1, 7, 5, 6),
        ops.mknod("/dev/full", 0o20600, 1, 7),
        ops.mknod("/dev/fifo", 0o10640),
        ops.symlink("/dev/fd", "/proc/self/fd"),
        ops.symlink("/dev/fd", "other"),
    )
    script = "stat -c '%n %a %u:%g %F' /dev/shm /dev/deep /dev/deep/er /dev/full /dev/fifo; readlink /dev/fd"
    assert run(rig, bundle, script, before=made).splitlines() == [
        "/dev/shm 1777 0:0 directory",
        "/dev/deep 755 0:0 directory",
        "/dev/deep/er 750 3:4 directory",
        "/dev/full 666 5:6 character special file",
        "/dev/fifo 640 0:0 fifo",
        "/proc/self/fd",
    ]
    assert rig.create(bundle.plan("true", before=(ops.mknod("/dev/null", 0o20666, 1, 9),))).error == errno.EEXIST


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "id\n"), ("uninitialized\n", "id\n"), ("uninitialized", "id\n"), ("own\n", "own\n"), (None, None)],
)
def test_machine_id(rig, bundle, content, expected):
    path = bundle.root / "etc/machine-id"
    if content is not None:
        path.write_text(content)
    run(rig, bundle, "true", after=(ops.machine_id("/etc/machine-id", "id\n"),))
    assert (path.read_text() if path.exists() else None) == expected


def test_copy_up(rig, bundle):
    source = bundle.root / "mnt"
    source.chmod(0o1755)
    (source / "sub").mkdir()
    (source / "sub/file").write_bytes(bytes(range(256)) * 9000)
    os.chown(source / "sub/file", 7, 8)
    (source / "sub/file").chmod(0o4711)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo", 0o600)
    script = "stat -f -c %T /mnt; stat -c '%n %a %u:%g %s %F' /mnt /mnt/sub/file | sed 's/ [0-9]* directory/ directory/'; readlink /mnt/link; stat -c %F /mnt/fifo; sha256sum < /mnt/sub/file; touch /mnt/x 2>/dev/null || echo refused"
    (bundle.root / "bin/sed").symlink_to("busybox")
    import hashlib

    digest = hashlib.sha256(bytes(range(256)) * 9000).hexdigest()
    common = [
        "tmpfs",
        "/mnt 1755 0:0 directory",
        "/mnt/sub/file 4711 7:8 2304000 regular file",
        "/etc/passwd",
        "fifo",
        f"{digest}  -",
    ]
    assert run(rig, bundle, script, before=(ops.mount("tmpfs", "/mnt", "tmpfs", copy_up=True),)).splitlines() == common
    assert not (source / "x").exists()
    read_only = ops.mount("tmpfs", "/mnt", "tmpfs", MS_RDONLY, copy_up=True)
    assert run(rig, bundle, script, after=(read_only,)).splitlines() == [*common, "refused"]


def test_tmpfs_takes_the_mode_of_its_target(rig, bundle):
    (bundle.root / "tmp").chmod(0o1777)
    script = "stat -c %a /tmp /mnt /made"
    mounts = (
        ops.mount("tmpfs", "/tmp", "tmpfs"),
        ops.mount("tmpfs", "/mnt", "tmpfs", 0, "size=4k,mode=0700"),
        ops.mount("tmpfs", "/made", "tmpfs", mode=0o710),
    )
    assert run(rig, bundle, script, before=mounts).split() == ["1777", "700", "1777"]  # a new one has tmpfs' default


# An image's links


@pytest.fixture
def outside(tmp_path):
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "victim").write_text("untouched")
    return directory


@pytest.mark.parametrize("pivoted", [False, True])
def test_links_never_lead_out(rig, bundle, outside, pivoted):
    up = "../" * 20
    (bundle.root / "absolute").symlink_to(outside)
    (bundle.root / "relative").symlink_to(up + str(outside)[1:])
    (bundle.root / "rootdir").symlink_to("/")
    (bundle.root / "victim").symlink_to(outside / "victim")
    operations = []
    for name in ("absolute", "relative"):
        operations += [
            ops.mkdir(f"/{name}/directory"),
            ops.mount("tmpfs", f"/{name}/mounted", "tmpfs"),
            ops.symlink(f"/{name}/link", "x"),
            ops.mknod(f"/{name}/node", 0o10600),
            ops.mkdir(f"/{name}/../{name}-up"),
        ]
    operations += [ops.mkdir("/rootdir/made"), ops.mask("/victim"), ops.readonly("/absolute/directory")]
    if not pivoted:
        operations.append(ops.bind(str(outside / "victim"), "/absolute/bound", is_file=True))
    moment = {"after" if pivoted else "before": tuple(operations)}
    run(rig, bundle, "true", **moment)
    assert sorted(path.name for path in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_text() == "untouched"
    # All of it happened below the image's root, where the links lead when / is the image.
    inside = bundle.root / str(outside)[1:]
    assert {"directory", "mounted", "link", "node"} <= {path.name for path in inside.iterdir()}
    assert (bundle.root / "made").is_dir()


@pytest.mark.parametrize("pivoted", [False, True])
def test_write_does_not_follow_out(rig, bundle, outside, pivoted):
    (bundle.root / "victim").symlink_to("../" * 20 + str(outside)[1:] + "/victim")
    moment = {"after" if pivoted else "before": (ops.write("/victim", "changed"),)}
    assert rig.create(bundle.plan("true", **moment)).error == errno.ENOENT
    assert (outside / "victim").read_text() == "untouched"


def test_mount_targets_as_links(rig, bundle):
    """/proc -> .., /etc -> /: the mounts land within the root."""
    for name, text in (("proc2", ".."), ("etc2", "/"), ("sys2", "../../../../sys-here")):
        (bundle.root / name).symlink_to(text)
    before = (
        ops.mount("tmpfs", "/sys2", "tmpfs"),
        ops.mount("tmpfs", "/etc2/over", "tmpfs"),
        ops.mount("tmpfs", "/proc2/up", "tmpfs"),
    )
    points = {line.split()[4] for line in run(rig, bundle, "cat /proc/self/mountinfo", before=before).splitlines()}
    assert points == {"/", "/proc", "/dev", "/sys-here", "/over", "/up"}


def test_dangling_links_are_filled_within_the_root(rig, bundle, tmp_path):
    (tmp_path / "resolv").write_text("nameserver\n")
    (bundle.root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (bundle.root / "etc/absolute").symlink_to("/run/absolute/file")
    (bundle.root / "var").symlink_to("missing/../tmp")
    (bundle.root / "lib").symlink_to("usr/lib")
    binds = tuple(
        ops.bind(str(tmp_path / "resolv"), path, is_file=True) for path in ("/etc/resolv.conf", "/etc/absolute")
    )
    assert (
        run(
            rig,
            bundle,
            "cat /run/systemd/resolve/stub-resolv.conf /etc/absolute; ls -d /usr/lib/x",
            before=(*binds, ops.mkdir("/lib/x")),
        )
        == "nameserver\nnameserver\n/usr/lib/x\n"
    )
    assert (
        rig.create(bundle.plan("true", before=(ops.mkdir("/var/x"),))).error == errno.ENOENT
    )  # a .. below what is missing


def test_loops_and_overlong_names_end(rig, bundle):
    (bundle.root / "loop").symlink_to("loop/x")
    (bundle.root / "self").symlink_to("self")
    for path, error in (
        ("/loop/a", errno.ELOOP),
        ("/self", errno.ELOOP),
        ("/" + "n" * 256, errno.ENAMETOOLONG),
        ("/" + "d/" * 2100, errno.ENAMETOOLONG),
    ):
        for operation in (ops.mkdir(path), ops.bind("/dev/null", path, is_file=True), ops.mknod(path, 0o10600)):
            if operation.opcode == ops.Opcode.MKNOD and path == "/self":
                error = errno.EEXIST  # noqa: PLW2901 - mknod(2) does not follow the last link
            result = rig.create(bundle.plan("true", before=(operation,)))
            assert result.error == error, operation


def test_magic_links_are_refused(rig, bundle):
    for path in ("/proc/self/root/x", "/proc/self/cwd/x", "/proc/1/fd/0"):
        assert rig.create(bundle.plan("true", after=(ops.write(path, "x"),))).error == errno.ELOOP


def test_sysctl_hostname_and_loopback(rig, bundle):
    operations = (ops.hostname("told"), ops.domainname("there"), ops.link_up("lo"))
    script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; grep -c . /proc/net/if_inet6"
    after = (ops.write("/proc/sys/net/ipv4/ip_forward", "1"), ops.keyring("k"))
    out = run(rig, bundle, script + " || true", before=operations, after=after).split()
    assert out[:3] == ["told", "there", "1"]
    assert Path("/proc/sys/kernel/hostname").read_text() != "told\n"


@pytest.mark.usefixtures("own_mounts")
def test_host_mounts_are_untouched(rig, bundle):
    before = Path("/proc/self/mountinfo").read_text()
    run(
        rig,
        bundle,
        "mount -t tmpfs none /mnt && mount --make-rshared / 2>/dev/null; true",
        after=(ops.propagation("/", MS_REC | MS_PRIVATE),),
    )
    assert Path("/proc/self/mountinfo").read_text() == before
