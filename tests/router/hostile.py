"""Hostile and broken clients beside honest experts, through a router's whole life.

A life is a sequence of fits on fresh anchors with live traffic in between; all scenarios end with the same held-out
groups.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from fastapi.responses import JSONResponse

from tests.router.endpoints import TOKEN, Endpoint, Endpoints, Score, noise, quality, words
from tests.router.planted import KINDS, jsonl, question, rows, specialist

OBJECTIVE = "helpful"
EXPERTS = {f"{kind}-{place}": (kind, place) for kind in KINDS for place in "ab"}
_ATTEMPTS = 3
_ANCHORS_FROM = 100_000
_HELD_OUT_FROM = 500_000


def knowing(item: dict[str, Any], response: str) -> float:
    """Score all kinds of questions as well as each expert scores its own."""
    return quality(response) + 1.5 * noise("knowing", words(item), response)


def inflating() -> Score:
    """Make a client that scores by taste, on a scale a thousand times larger than any other."""
    return lambda item, response: 1000 * noise("taste", words(item), response)


def shifting() -> Score:
    """Make a client that scores by taste, on a level that jumps by a million from group to group."""
    return lambda item, response: 1e6 * noise("level", words(item)) + noise("taste", words(item), response)


def flipping() -> Score:
    """Make a client that inverts its scores."""
    return lambda item, response: -knowing(item, response)


def constant() -> Score:
    return lambda item, response: 3.0


def unsteady() -> Score:
    """Make a client that gives another number at each call, even for the same response."""
    turn = itertools.count()
    return lambda item, response: noise(str(next(turn)))


def two_faced() -> Score:
    """Make a client that is honest about pairs, which look like anchors shown at a fit, and hostile about all else."""
    shown: set[str] = set()

    def score(item: dict[str, Any], response: str) -> float:
        if len(item["responses"]) == 2:
            shown.add(words(item))  # so that it recognises the question later
        return knowing(item, response) * (1 if words(item) in shown else -1)

    return score


HOSTILE: dict[str, tuple[Callable[[], Score], ...]] = {
    "inflating": (inflating,),
    "shifting": (shifting,),
    "flipping": (flipping,),
    "constant": (constant,),
    "random": (unsteady,),
    "colluding pair": (inflating, inflating),
    "honest on anchors, hostile on live traffic": (two_faced,),
}
"""Scenario -> the clients that it adds."""


def slow(endpoint: Endpoint) -> None:
    """Make an honest client slower than any deadline here."""
    endpoint.delay_s = 30


def flaky(endpoint: Endpoint) -> None:
    """Make an honest client fail at three of ten calls."""
    luck = random.Random(0)
    endpoint.sometimes = lambda: JSONResponse({"detail": "out of memory"}, 500) if luck.random() < 0.3 else None


BROKEN: dict[str, Callable[[Endpoint], None]] = {"slow": slow, "flaky": flaky}
"""Scenario -> change to a further expert after the first fit."""


class Caller(Protocol):
    """The router's API."""

    async def ok(self, method: str, path: str, body: Any = None) -> Any: ...

    async def upload(self, name: str, content: bytes) -> None: ...

    async def reward_groups(self, items: list[dict[str, Any]], images: dict[str, str]) -> list[dict[str, Any]]: ...

    async def settled(self) -> None:
        """Wait for the honeypot calls that are still to come."""


@dataclass(frozen=True)
class Plan:
    """Length of a life."""

    refits: int = 5
    anchors: int = 180
    """Fresh anchors for each fit."""
    calls: int = 12
    """Calls of live traffic between two fits, each with 8 groups of 4 responses."""
    held_out: int = 240
    """Groups of 8 responses after the last fit, on which all clients are measured."""


@dataclass
class Outcome:
    """Measurements of a life."""

    accuracy: float = 0.0
    """Share of the pairs within held-out groups that the reward ranks as the truth does."""
    weights: dict[str, float] = field(default_factory=dict)
    """Mean weight in held-out groups, by client."""
    states: dict[str, str] = field(default_factory=dict)
    accuracy_by_round: list[float] = field(default_factory=list)
    """The accuracy in the traffic after each fit."""
    lost: int = 0
    """Groups without a reward after three attempts."""
    call_seconds: list[float] = field(default_factory=list)
    """Duration of each call of live traffic."""


async def live_through(api: Caller, endpoints: Endpoints, scenario: str, plan: Plan) -> Outcome:
    """Run a router's life with honest experts and the clients of ``scenario``; ``clean`` adds none."""
    made = {name: endpoints.endpoint(name, specialist(kind, salt=salt)) for name, (kind, salt) in EXPERTS.items()}
    for index, build in enumerate(HOSTILE.get(scenario, ())):
        made[f"bad-{index}"] = endpoints.endpoint(f"bad-{index}", build())
    if scenario in BROKEN:
        made["bad-0"] = endpoints.endpoint("bad-0", specialist("chart", salt="bad"))
    for name, endpoint in made.items():
        await api.ok("POST", "/v1/clients", {"name": name, "url": endpoint.url, "domains": "tests", "token": TOKEN})
    await api.ok("POST", "/v1/objectives", {"name": OBJECTIVE, "text": "Answer what was asked."})
    outcome = Outcome()
    for turn in range(1 + plan.refits):
        await api.upload(OBJECTIVE, jsonl(rows(plan.anchors, seed=turn, start=_ANCHORS_FROM + plan.anchors * turn)))
        await api.ok("POST", f"/v1/objectives/{OBJECTIVE}/fit")
        if turn == 0 and scenario in BROKEN:
            BROKEN[scenario](made["bad-0"])
        found = []
        for call in range(plan.calls):
            found += await _call(api, outcome, (turn * plan.calls + call) * 8, count=8, size=4)
        await api.settled()
        outcome.accuracy_by_round.append(_accuracy(found))
    held_out = []
    for index in range(0, plan.held_out, 8):
        held_out += await _call(api, outcome, _HELD_OUT_FROM + index, count=8, size=8)
    outcome.accuracy = _accuracy(held_out)
    lines = [line for _, rewarded in held_out if rewarded for line in rewarded["clients"]]
    outcome.weights = {name: sum(x["weight"] for x in lines if x["client"] == name) / len(held_out) for name in made}
    outcome.states = {client["name"]: client["state"] for client in await api.ok("GET", "/v1/clients")}
    return outcome


async def _call(
    api: Caller, outcome: Outcome, first: int, *, count: int, size: int
) -> list[tuple[list[float], dict[str, Any] | None]]:
    """Make one call of live traffic; return each group's true qualities and its reward, ``None`` where it was lost."""
    qualities = np.random.default_rng(first)
    items: list[dict[str, Any]] = []
    images: dict[str, str] = {}
    for number in range(first, first + count):
        messages, shown = question(list(KINDS)[number % 3], number)
        images |= shown
        responses = [f"answer {value}" for value in qualities.normal(0, 1.2, size=size).round(3)]
        items.append({"item_id": str(number), "messages": messages, "responses": responses, "objective": OBJECTIVE})
    rewarded: dict[str, dict[str, Any]] = {}
    started = time.perf_counter()
    for _ in range(_ATTEMPTS):
        left = [item for item in items if item["item_id"] not in rewarded]
        if left:
            answers = await api.reward_groups(left, images)
            rewarded |= {found["item_id"]: found for found in answers if found["status"] == "ok"}
    outcome.call_seconds.append(time.perf_counter() - started)
    outcome.lost += len(items) - len(rewarded)
    return [([quality(text) for text in item["responses"]], rewarded.get(item["item_id"])) for item in items]


def _accuracy(groups: list[tuple[list[float], dict[str, Any] | None]]) -> float:
    hits = [
        (truth[i] > truth[j]) == (found["rewards"][i] > found["rewards"][j])
        for truth, found in groups
        if found is not None
        for i, j in itertools.combinations(range(len(truth)), 2)
        if truth[i] != truth[j]
    ]
    return float(np.mean(hits))
