"""The host's mounts, of which a test changes none for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rundctl.engine import settings

from .conftest import eventually
from .runtimes import mountinfo

_HOSTS = ("/dev", "/proc", "/sys", "/run/rundctl")


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Afterwards they are what they were: the host's own, and those with something of this test's. Other suites' elsewhere come and go."""
    ours = (str(directory), settings.load().home)

    def found() -> list[str]:
        return [mount for mount in mountinfo() if _is_the_hosts(mount) or any(name in mount for name in ours)]

    before = found()
    yield
    eventually(lambda: found() == before, f"all mounts are again {before}")


def _is_the_hosts(mount: str) -> bool:
    point = mount.split(" ")[2]
    return point == "/" or any(f"{point}/".startswith(f"{top}/") for top in _HOSTS)
