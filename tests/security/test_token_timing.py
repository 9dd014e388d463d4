"""The time of a refusal tells nobody whether a token exists: neither a call nor a search depends on it."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable

import pytest

from tests.security.served_apps import SERVICES, TOKENS, ServedApp

PAIRS = 100
MOST_S = 0.005
"""Largest difference of the medians, seconds: far below a call to another service, far above the noise of a median."""


def tokens_of(served: ServedApp) -> dict[str, Callable[[], str]]:
    """Return tokens of each kind, by whether and where they are known. None of the known ones opens ``/metrics``."""
    kinds = {"of the file": lambda: TOKENS["labeller"], "unknown": lambda: secrets.token_urlsafe(32)}
    if served.name == "router":
        name = f"page-{secrets.token_hex(4)}"  # of its own: a fuzz of all routes may have removed the known client
        with served.http() as http:
            http.post("/v1/clients", json={"name": name, "domains": "tests", **served.bodies}).raise_for_status()
            page = http.post(f"/v1/clients/{name}/rotate", json={"inbound": True}).raise_for_status().json()["token"]
        kinds["of a client"] = lambda: page
    return kinds


@pytest.mark.parametrize("service", SERVICES)
def test_an_unknown_token_takes_as_long_as_a_known_one(served_apps: dict[str, ServedApp], service: str) -> None:
    kinds = tokens_of(served_apps[service])
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    with served_apps[service].http(None) as http:
        for _ in range(PAIRS):
            for kind, token in kinds.items():
                headers = {"Authorization": f"Bearer {token()}"}
                began = time.perf_counter()
                status = http.get("/metrics", headers=headers).status_code
                took[kind].append(time.perf_counter() - began)
                assert status == (401 if kind == "unknown" else 403)
    medians = {kind: statistics.median(times) for kind, times in took.items()}
    assert max(medians.values()) - min(medians.values()) < MOST_S, medians
