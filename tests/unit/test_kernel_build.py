"""The lean kernel's options and what its name depends on; building it is for tests/system."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from rundctl.errors import HostError, UsageError
from rundctl.guest import kernel, kernel_build, kernel_default, kernel_options, kernel_source
from rundctl.guest.kernel_options import Option
from rundctl.host import workshop

KNOWN = {"FOO", "NEW", "BAR", "SIZE", "NAME"}
OPTIONS = kernel_options.load()
_TEXT = '[thing]\nFOO=y  # needed\nOLD|NEW=y  # renamed\nBAR=n  # unwanted\nSIZE=15  # small\nNAME="-x"  # says so\n'
_NEEDED = [
    "EXT4_FS_SECURITY",
    "BLK_CGROUP",
    "CGROUP_HUGETLB",
    "TIME_NS",
    "KEYS",
    "NF_TABLES",
    "NFT_COMPAT",
    "NFT_MASQ",
    "NF_CONNTRACK",
    "BRIDGE",
    "VETH",
    "DUMMY",
    "TUN",
    "STACKPROTECTOR_STRONG",
    "SECCOMP_FILTER",
    "IO_URING",
    "FUSE_FS",
    "POSIX_MQUEUE",
    "VMGENID",
    "EROFS_FS",
    "FS_DAX",
    "VIRTIO_PMEM",
    "VIRTIO_FS",
    "9P_FS",
    "IPV6",
    "USER_NS",
    "PVH",
    "KVM_GUEST",
    "HW_RANDOM_VIRTIO",
]


def _recipe(**changes: object) -> kernel_build.Recipe:
    given: dict[str, object] = {
        "source": kernel_source.Source("linux-source-6.1", "6.1.1-1"),
        "options": kernel_options.parse(_TEXT, "t"),
        "compiler": "gcc 12",
    }
    return kernel_build.Recipe(**{**given, **changes})  # type: ignore[arg-type]


def test_every_option_has_a_reason_and_a_feature() -> None:
    assert len(OPTIONS) > 200
    assert all(len(option.reason) > 3 and option.feature for option in OPTIONS)


def test_files_say_what_they_are_for() -> None:
    for path in Path(kernel_options.DIRECTORY).glob("*.config"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("name", _NEEDED)
def test_what_containers_need_is_asked_for(name: str) -> None:
    assert [option.value for option in OPTIONS if name in option.names] == ["y"]


@pytest.mark.parametrize("name", ["MODULES", "VIRTIO_BALLOON", "COMPACTION", "DETECT_HUNG_TASK", "KEXEC", "DEVMEM"])
def test_what_must_not_be_is_refused(name: str) -> None:
    assert [option.value for option in OPTIONS if name in option.names] == ["n"]


def test_parse() -> None:
    foo, renamed, bar, size, name = kernel_options.parse(_TEXT, "t")
    assert foo == Option(("FOO",), "y", "thing", "needed")
    assert renamed.lines() == ["CONFIG_OLD=y", "CONFIG_NEW=y"]
    assert bar.lines() == ["# CONFIG_BAR is not set"]
    assert (size.value, name.lines()) == ("15", ['CONFIG_NAME="-x"'])


@pytest.mark.parametrize("line", ["FOO=y", "FOO=y  #", "FOO=m  # a module", "CONFIG_FOO y  # no", "FOO  # no value"])
def test_a_line_without_reason_or_value_is_refused(line: str) -> None:
    with pytest.raises(HostError, match="file:2: expected NAME=value"):
        kernel_options.parse(f"[thing]\n{line}\n", "file")


def test_an_option_outside_a_feature_is_refused() -> None:
    with pytest.raises(HostError, match="below a"):
        kernel_options.parse("FOO=y  # why\n", "file")


def test_an_option_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text("[one]\nFOO=y  # why\n")
    (tmp_path / "b.config").write_text("[two]\nBAR|FOO=n  # why not\n")
    with pytest.raises(HostError, match="FOO: named twice"):
        kernel_options.load(str(tmp_path))


def test_verify_takes_what_was_taken() -> None:
    config = 'CONFIG_FOO=y\nCONFIG_NEW=y\n# CONFIG_BAR is not set\nCONFIG_SIZE=15\nCONFIG_NAME="-x"\n'
    kernel_options.verify(kernel_options.parse(_TEXT, "t"), config, KNOWN)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("CONFIG_NEW=y\nCONFIG_SIZE=15\n", "FOO=y .*thing: needed."),
        ("CONFIG_FOO=m\nCONFIG_NEW=y\nCONFIG_SIZE=15\n", "FOO=y"),
        ("CONFIG_FOO=y\nCONFIG_SIZE=15\n", "OLD or NEW=y"),
        ("CONFIG_FOO=y\nCONFIG_OLD=y\nCONFIG_SIZE=17\n", "SIZE=15 .something else forbids"),
        ("CONFIG_FOO=y\nCONFIG_OLD=y\nCONFIG_SIZE=15\nCONFIG_BAR=y\n", "BAR=n"),
    ],
    ids=["dropped", "module", "unknown", "other value", "selected"],
)
def test_verify_names_what_was_not_taken(config: str, named: str) -> None:
    with pytest.raises(HostError, match=f"not taken: .*{named}"):
        kernel_options.verify(kernel_options.parse(_TEXT, "t"), f'{config}CONFIG_NAME="-x"\n', KNOWN)


@pytest.mark.parametrize(("known", "accepted"), [(set(), True), ({"NEWER"}, True), ({"GONE"}, False)])
def test_an_option_that_some_series_lack(known: set[str], accepted: bool) -> None:
    options = kernel_options.parse("[thing]\nGONE?=y  # not in newer ones\n", "t")
    with nullcontext() if accepted else pytest.raises(HostError, match="GONE=y"):
        kernel_options.verify(options, "", known)


def test_an_option_that_the_series_lacks_is_told_apart() -> None:
    options = kernel_options.parse("[thing]\nGONE=y  # not in newer ones\n", "t")
    with pytest.raises(HostError, match=r"GONE=y .this series has no such option"):
        kernel_options.verify(options, "", {"OTHER"})


def test_defined_options_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "Kconfig").write_text("config ONE\n\tbool\nmenuconfig TWO\n")
    (tmp_path / "fs/Kconfig.sub").write_text("if ONE\n config THREE\n")
    (tmp_path / "fs/Makefile").write_text("config FOUR\n")
    assert kernel_options.defined(str(tmp_path)) == {"ONE", "TWO", "THREE"}


def test_name_tells_the_version_and_depends_on_everything_but_words() -> None:
    name = _recipe().name()
    assert name.startswith("6.1.1-1-lean-")
    assert _recipe(options=kernel_options.parse(_TEXT.replace("needed", "reworded"), "t")).name() == name
    others = [
        _recipe(options=kernel_options.parse(_TEXT.replace("15", "16"), "t")),
        _recipe(compiler="gcc 13"),
        _recipe(source=kernel_source.Source("linux-source-6.1", "6.1.1-2")),
        _recipe(source=kernel_source.Source("linux-source-6.12", "6.1.1-1")),
    ]
    assert len({name, *(other.name() for other in others)}) == 5


def test_missing_tools_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop.process, "TOOL_DIRECTORIES", (str(tmp_path),))
    (tmp_path / "make").write_text("")
    (tmp_path / "make").chmod(0o755)
    with pytest.raises(HostError, match=r"build a kernel: missing: .*flex .reads Kconfig") as caught:
        kernel_build.build(str(tmp_path), "", lambda _: None)
    words = caught.value.hint.split()
    assert words[:2] == ["apt-get", "install"]
    assert {"gcc", "flex", "bison", "bc"} <= set(words)
    assert "make" not in words


def test_source_must_be_a_source_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop.process, "need_tool", lambda *_: "")
    with pytest.raises(UsageError, match="--source takes the name"):
        kernel_source.choose("linux-image-amd64")


def _installed(home: Path, name: str) -> str:
    parts = kernel.Parts(name.encode(), [], "", version="1", origin="test")
    return kernel.install(str(home), name, parts).name


def test_use_changes_the_default(tmp_path: Path) -> None:
    assert kernel_default.name(str(tmp_path)) == ""
    names = [_installed(tmp_path, name) for name in ("6.1.0-1-amd64", "6.1.9-1-lean-0")]
    for name in names:
        kernel_default.use(str(tmp_path), name)
        assert kernel_default.name(str(tmp_path)) == name
        assert os.path.realpath(tmp_path / "kernels/current") == str(tmp_path / "kernels" / name)


@pytest.mark.parametrize("name", ["gone", "current", "../kernels/6.1.0-1-amd64", ""])
def test_use_of_what_is_no_kernel_changes_nothing(tmp_path: Path, name: str) -> None:
    kernel_default.use(str(tmp_path), _installed(tmp_path, "6.1.0-1-amd64"))
    with pytest.raises(HostError, match=r"there are: 6\.1\.0-1-amd64"):
        kernel_default.use(str(tmp_path), name)
    assert kernel_default.name(str(tmp_path)) == "6.1.0-1-amd64"


def test_a_kernel_without_modules_says_its_controllers() -> None:
    config = "\nCONFIG_BLK_CGROUP=y\nCONFIG_CPUSETS=y\nCONFIG_CGROUP_HUGETLB=y\n"
    manifest = kernel.Parts(b"image", [], config, version="1", origin="test").manifest()
    assert set(manifest["controllers"]) == {"cpu", "memory", "pids", "io", "cpuset", "hugetlb"}
    assert manifest["modules"] == []
    assert manifest["vmlinux"] == hashlib.sha256(b"image").hexdigest()
