"""A container's cgroups as the agent walks them: its cgroup.c on made-up trees, with sanitizers. That they are frozen meanwhile: tests/system/test_verbs.py."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from agent_rig import ENVIRONMENT

DEADLINE_S = 120.0  # for what must come, on a busy machine
DEEPER_THAN_A_PATH = 40  # times 250: neither PATH_MAX nor a descriptor a level
PROBE = Path(__file__).with_name("cgroup_probe.c")
IN_ITS_PLACE = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/cgroup && exec "$@"']


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    target = tmp_path_factory.mktemp("cgroup") / "probe"
    files = [PROBE, *(build.NATIVE / "agent").glob("cgroup*.c")]
    includes = [f"-I{build.NATIVE / name}" for name in ("agent", "common", "include")]
    flags = [*build.LANGUAGE, *build.WARNINGS, *build.SANITIZE, "-Wl,--wrap=statfs"]
    subprocess.run(["cc", *flags, *includes, "-o", target, *files], check=True)
    return target


@pytest.fixture
def member():
    """Start processes, and write their numbers where a cgroup has them."""
    members = []

    def make(directory):
        process = subprocess.Popen(["sleep", "1000"])
        members.append(process)
        fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CREAT, dir_fd=directory)
        os.write(fd, b"%d\n" % process.pid)
        os.close(fd)
        return process

    yield make
    for process in members:
        process.kill()
        process.wait()


def run(*argv):
    done = subprocess.run(argv, capture_output=True, env=ENVIRONMENT, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [int(word) for word in done.stdout.split()]


def below(directory, name):
    os.mkdir(name, dir_fd=directory)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)


def make_deep(path):
    """A chain of directories; a descriptor of the last."""
    here = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(DEEPER_THAN_A_PATH):
        deeper = below(here, "d" * 250)
        os.close(here)
        here = deeper
    return here


@pytest.mark.parametrize("name", [".x", "..x", "...", "x", "-", "+", " "])
def test_a_signal_reaches_cgroups_of_every_name(probe, tmp_path, member, name):
    (tmp_path / name / "y").mkdir(parents=True)
    (tmp_path / "z").mkdir()
    members = []
    for path in (tmp_path, tmp_path / name, tmp_path / name / "y", tmp_path / "z"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        members.append(member(directory))
        os.close(directory)
    assert run(probe, "signal", tmp_path, str(int(signal.SIGUSR1))) == [0]
    assert [process.wait(DEADLINE_S) for process in members] == [-signal.SIGUSR1] * 4


def test_a_signal_reaches_the_deepest_cgroup(probe, tmp_path, member):
    directory = make_deep(tmp_path)
    process = member(directory)
    os.close(directory)
    assert run("sh", "-c", 'ulimit -n 16; exec "$@"', "", probe, "signal", tmp_path, "10") == [0]
    assert process.wait(DEADLINE_S) == -signal.SIGUSR1
    run("rm", "-rf", tmp_path / ("d" * 250))  # pytest's own clean-up recurses


def test_nobody_to_signal(probe, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(probe, "signal", tmp_path, "10") == [errno.ESRCH]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_all_cgroups_are_removed(probe, tmp_path):
    for name in ("c1/.x/y", "c1/many", *(f"c1/many/{number}" for number in range(200)), "c2"):
        (tmp_path / name).mkdir(parents=True)
    os.close(make_deep(tmp_path / "c1"))
    run(*IN_ITS_PLACE, tmp_path, probe, "remove")
    assert os.listdir(tmp_path) == ["c2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_cgroup_that_cannot_be_opened_says_why(probe, tmp_path):
    assert run(*IN_ITS_PLACE, tmp_path, probe, "make") == [0, errno.EMFILE, errno.EMFILE]
    assert os.listdir(tmp_path) == ["c1"]
