"""How hypothesis runs here: no test fails because the machine has much else to do. Its first use alone builds tables of Unicode for more than a second."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def load() -> None:
    """To be called before the tests are imported: their own settings add to it."""
    settings.register_profile("rundctl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("rundctl")
