"""Stacks of tests that run side by side have ports of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from three_domains import stack


@pytest.fixture(scope="session", autouse=True)
def own_ports() -> Iterator[None]:
    """Start this process's search for free ports where no other one's begins, nor that of a demonstration.

    A block is taken once its first service listens: stacks that are prepared at the same second would have the same.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "_FIRST_PORT", stack._FIRST_PORT + 200 * (number + 1))
        yield
