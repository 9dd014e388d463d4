"""System clock of a test's process, set ahead or back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

Shift = Callable[[float], None]


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> Shift:
    """Return a function that sets the system's clock of this process ahead."""
    real = time.time

    def set_ahead(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return set_ahead
