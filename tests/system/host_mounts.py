"""The host's mounts, of which a test changes none for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rundctl.engine import settings

from .conftest import eventually
from .runtimes import mountinfo

_HOSTS = ("/dev", "/proc", "/sys", "/run/rundctl")


def found(directory: Path) -> list[str]:
    """The host's own, and those with something of this test's. Other suites' elsewhere come and go."""
    ours = (str(directory), settings.load().home)
    return [mount for mount in mountinfo() if _is_the_hosts(mount) or any(name in mount for name in ours)]


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Afterwards they are what they were."""
    before = found(directory)
    yield
    eventually(lambda: found(directory) == before, f"all mounts are again {before}")


def _is_the_hosts(mount: str) -> bool:
    point = mount.split(" ")[2]
    return point == "/" or any(f"{point}/".startswith(f"{top}/") for top in _HOSTS)
