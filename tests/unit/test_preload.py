"""rundctl/preload.py: what is read from a pack is what the sources say, and where there is no pack all is as always."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rundctl

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import sys
from rundctl import preload
preload.load(sys.argv[1:])
from rundctl.commands import table
known = {name: type(module) for name, module in sys.modules.items() if name.startswith("rundctl.")}
empty = [name for name, kind in known.items() if kind is not type(sys)]
try:
    from rundctl import cli
    code = cli.main(sys.argv[1:])
except BaseException as error:
    code = repr(error)
import json
filled = [name for name in known if type(sys.modules[name]) is type(sys)]
print(json.dumps([code, table.MARK if hasattr(table, "MARK") else "", empty, filled]))
"""


class Package:
    """A copy of the package, and calls of it."""

    def __init__(self, above: Path) -> None:
        self.above = above
        self.package = above / "rundctl"

    def call(self, *words: str, user: int = 0) -> tuple[int, str, list[str], list[str]]:
        """Exit code, mark, and which modules were empty before the call was begun; stderr must be that of a call."""
        source = f"import sys; sys.path.insert(0, {str(self.above)!r})\n{PROGRAM}"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", source, *words], capture_output=True, check=False, timeout=60, user=user,
        )  # fmt: skip
        assert "--debug" in words or b"Traceback" not in done.stderr, done.stderr
        code, mark, empty, filled = json.loads(done.stdout.splitlines()[-1])
        return code, mark, empty, filled

    def packs(self) -> list[str]:
        return sorted(path.name for path in (self.package / "__pycache__").glob("*.pack*"))

    def mark(self, words: str) -> None:
        """Change a source, as an editor does, so that it can be seen."""
        with (self.package / "commands/table.py").open("a") as file:
            file.write(f"MARK = {words!r}\n")


@pytest.fixture
def package() -> Iterator[Package]:
    with tempfile.TemporaryDirectory() as above:  # others may not enter pytest's
        Path(above).chmod(0o755)
        shutil.copytree(
            Path(rundctl.__file__).parent, f"{above}/rundctl", ignore=shutil.ignore_patterns("_native", "*.pack")
        )
        yield Package(Path(above))


STATE = ("--root", "/nowhere", "state", "none")


def test_the_first_call_writes_a_pack_and_the_next_reads_it(package: Package) -> None:
    code, _, empty, _ = package.call(*STATE)
    assert (code, empty) == (1, [])
    assert package.packs() == [f"state.{sys.implementation.cache_tag}.pack"]
    code, _, empty, filled = package.call(*STATE)
    assert code == 1
    assert {"rundctl.cli", "rundctl.oci.state", "rundctl.engine.records.store"} <= set(empty)
    assert "rundctl.engine.records.store" in filled
    assert set(empty) - set(filled), "what nobody has asked for stays empty"


@pytest.mark.parametrize("verb", ["create", "run", "start", "state", "kill", "delete"])
def test_a_call_with_a_pack_does_what_one_without_does(verb: str, package: Package) -> None:
    words = ("--root", "/nowhere", verb, "none")
    without = package.call(*words)
    assert package.call(*words)[0] == without[0] == 1
    assert package.packs() == [f"{verb}.{sys.implementation.cache_tag}.pack"]


def test_an_edited_source_wins_at_once_and_the_pack_is_made_anew(package: Package) -> None:
    package.call(*STATE)
    package.mark("first")
    _, mark, empty, _ = package.call(*STATE)
    assert mark == "first"
    assert empty, "the other modules come from the pack"
    assert package.packs() == []
    assert package.call(*STATE)[1] == "first"
    package.mark("second")
    assert package.call(*STATE)[1] == "second"


def test_a_source_of_the_same_size_and_second_wins(package: Package) -> None:
    package.mark("one")
    package.call(*STATE)
    table = package.package / "commands/table.py"
    before = table.stat()
    table.write_text(table.read_text().replace("'one'", "'two'"))
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    # Python's own cache is one for the whole second.
    shutil.rmtree(package.package / "commands/__pycache__")
    assert package.call(*STATE)[1] == "two"


def test_a_source_that_is_gone_is_not_there(package: Package) -> None:
    package.call(*STATE)
    (package.package / "commands/table.py").unlink()
    source = f"import sys; sys.path.insert(0, {str(package.above)!r})\nfrom rundctl import preload; preload.load(['state'])\nfrom rundctl import cli; sys.exit(cli.main(['state', 'x']))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"rundctl: {package.package}/commands/table.py: is missing\n".encode()


@pytest.mark.parametrize(
    "damage", [b"", b"x", bytes(100), None, "half"], ids=["empty", "short", "zeroes", "of another place", "half"]
)
def test_a_damaged_pack_is_as_none(damage: bytes | str | None, package: Package) -> None:
    package.call(*STATE)
    (pack,) = (package.package / "__pycache__").glob("*.pack")
    whole = pack.read_bytes()
    if damage is None:
        pack.write_bytes(whole.replace(str(package.above).encode(), str(package.above).encode()[::-1]))
    else:
        pack.write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    code, _, empty, _ = package.call(*STATE)
    assert (code, empty) == (1, [])
    assert pack.read_bytes() != b"x"
    assert package.call(*STATE)[2], "it was made anew"


def test_who_is_not_root_makes_none(package: Package) -> None:
    code, _, empty, _ = package.call(*STATE, user=65534)
    assert (code, empty, package.packs()) == (1, [], [])


def test_where_none_can_be_written_all_is_as_always(package: Package) -> None:
    shutil.rmtree(package.package / "__pycache__", ignore_errors=True)
    (package.package / "__pycache__").touch()
    assert package.call(*STATE)[0] == 1
    assert package.call(*STATE)[2] == []


def test_an_error_shows_file_and_line(package: Package) -> None:
    package.call("--debug", *STATE)
    source = f"import sys; sys.path.insert(0, {str(package.above)!r})\nfrom rundctl import preload; preload.load(['state'])\nfrom rundctl import cli\ncli.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source, "--debug", *STATE], capture_output=True, check=False
    )
    lines = done.stderr.decode()
    assert f'File "{package.package}/engine/records/store.py", line ' in lines
    assert "raise StateError(" in lines


def test_other_words_load_nothing(package: Package) -> None:
    _, _, empty, _ = package.call("list")
    assert (empty, package.packs()) == ([], [])
