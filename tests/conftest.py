"""What every test may use, and how all are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import notes, twice

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """In the VM of inside.py there is no xdist, and no need of it."""
    if config.pluginmanager.hasplugin("xdist"):
        from . import lanes

        lanes.install(config)
    config.pluginmanager.register(twice.Repeater(CHECKOUT / "tests/system"), "repeater")
    config.pluginmanager.register(twice.Names(), "unstable")
    config.pluginmanager.register(notes.Notes(), "notes")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Directory of the source tree."""
    return CHECKOUT
