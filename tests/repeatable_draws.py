"""Draws of tests: the same in every run, so that a rare one fails no run; ``MOR_TEST_SEED`` chooses others.

The services draw from the operating system what nobody may predict. Those draws are seeded here too: a test that holds
for nearly all of them would otherwise fail one run in many. A test's seed depends on its name, so that it is the same
alone, in its folder and in several processes. Keys of cryptography, and other processes, stay random.
"""

from __future__ import annotations

import os
import random
import sys
import zlib

import hypothesis
import pytest

_SEED = os.environ.get("MOR_TEST_SEED", "")
_secret = random.Random()

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=not _SEED)  # a busy machine is no failure
hypothesis.settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Have ``secrets`` and every ``SystemRandom`` draw from a seeded source."""
    for name in ("random", "getrandbits", "randbytes"):
        setattr(random.SystemRandom, name, staticmethod(getattr(_secret, name)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _begin(f"fixtures of {item.nodeid}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _begin(item.nodeid)  # whatever the fixtures drew: those of a session are made for one test only


def _begin(name: str) -> None:
    seed = zlib.crc32(f"{name} {_SEED}".encode())
    _secret.seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
