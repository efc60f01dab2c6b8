"""Which modules a call has loaded, and which it should not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

# Each costs time, and none is needed where nothing goes wrong; nor, of ours, where nobody asks for that transport.
HEAVY = frozenset(
    [
        "typer",
        "rich",
        "jsonschema",
        "pyroute2",
        "psutil",
        "dataclasses",
        "typing",
        "subprocess",
        "asyncio",
        "logging",
        "inspect",
        "pathlib",
        "tempfile",
        "shutil",
        "hashlib",
        "ctypes",
        "argparse",
        "importlib.metadata",
        "tomllib",
        "threading",
        # rundctl/lean stands in for these.
        "enum",
        "contextlib",
        "json",
        "os",
        "posixpath",
        "signal",
        # What they and others would bring: half of an interpreter's start, and more.
        "collections",
        "functools",
        "re",
        "selectors",
        "struct",
        "socket",
        "types",
        "rundctl.engine.rootfs.disk",
        "rundctl.engine.rootfs.shares",
        "rundctl.vmm.virtiofsd",
    ]
)
# tomllib reads a settings file; nothing else may need it, and what it brings.
OF_SETTINGS = frozenset(
    ["tomllib", "typing", "collections", "contextlib", "enum", "functools", "os", "posixpath", "re", "types"]
)
SAY = """
code, modules = locals().get("code", 0), sorted(sys.modules)
import json
print(json.dumps([code, modules]))
"""
PROBE = f"""
import sys
from rundctl import cli
code = cli.main(sys.argv[1:])
{SAY}
"""


def loaded(program: str, *words: str, path: list[str] = sys.path, **environment: str) -> tuple[int, set[str]]:
    """Exit code and modules of an interpreter without `site`, as the installed command runs."""
    source = f"import sys; sys.path[:0] = {path!r}\n{program}"
    with tempfile.TemporaryFile("w+") as stdout:  # no pipe: a container keeps it open
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", source, *words],
            stdin=subprocess.DEVNULL, stdout=stdout, check=True, timeout=120, env={**os.environ, **environment},
        )  # fmt: skip
        stdout.seek(0)
        code, modules = json.loads(stdout.read().splitlines()[-1])
    return code, set(modules)
