"""Starting from the template is much faster than booting: as a generous ratio; the figures are ``make bench``'s."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Cli


def test_a_clone_starts_in_half_of_a_boot(cli: Cli, bundle: Callable[..., Path]) -> None:
    where = str(bundle("/bin/true"))

    def run_s(template: str) -> float:
        before = time.monotonic()
        cli("run", "--template", template, "--bundle", where, "speed")
        return time.monotonic() - before

    run_s("on")
    # In turn, and the best of each: what else runs on the machine can only add. A lean kernel boots fast: the ratio was 4.0 (docs/performance.md).
    rounds = [(run_s("on"), run_s("off")) for _ in range(4)]
    clone, boot = (min(column) for column in zip(*rounds, strict=True))
    assert 2 * clone < boot, rounds
