"""What the tests of the contract share."""

from __future__ import annotations

from ..unit import hypothesis_profile

hypothesis_profile.load()
