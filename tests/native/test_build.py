"""What the compiler's flags have made of the programs that are shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
import build


def elf(program, *options):
    return subprocess.run(["readelf", "-W", *options, program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", build.PROGRAMS)
def test_no_stack_is_executable_and_no_page_both_written_and_run(released, name):
    segments = elf(released[name], "--program-headers")
    assert re.search(r"GNU_STACK .* RW  ", segments)
    assert "RWE" not in segments
    assert "INTERP" not in segments


def test_the_shim_lies_elsewhere_each_time_and_is_read_only_once_relocated(released):
    assert re.search(r"Type: +DYN ", elf(released["shim"], "--file-header"))
    assert "GNU_RELRO" in elf(released["shim"], "--program-headers")
    dynamic = elf(released["shim"], "--dynamic")
    assert "BIND_NOW" in dynamic
    assert "PIE" in dynamic
    assert "TEXTREL" not in dynamic


@pytest.mark.parametrize("name", build.PROGRAMS)
def test_own_functions_check_their_stacks_and_copies(tmp_path, name):
    """The C library's have canaries of their own, so the linker is asked who wants them."""
    wanted = ("__stack_chk_fail", "__snprintf_chk")
    traces = [f"-Wl,--trace-symbol={symbol}" for symbol in wanted]
    argv = [*build.command(name, tmp_path / name), *traces]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    references = [line for line in done.stdout.splitlines() if "reference to" in line and "libc.a" not in line]
    for symbol in wanted:
        assert any(line.endswith(symbol) for line in references), (symbol, done.stdout)
