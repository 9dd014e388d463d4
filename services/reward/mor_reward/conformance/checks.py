"""The clauses of ``docs/reward-contract.md`` that can be tried from outside; the docstring of a check is its clause."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mor_core.wire import ScoreItem

from mor_reward.conformance.endpoint import RESPONSES, Answer, Broken, Endpoint, Skipped, encoded, example, new_picture

_TOLERANCE = 1e-3
"""Of the range of the scores compared: batches of another size round otherwise."""
_LARGEST_TRY = 32 << 20
_MOST_AT_ONCE = 8


def card(endpoint: Endpoint) -> None:
    """`GET /v1/card` answers a card with the model's name and version and limits of at least 1."""
    _ = endpoint.card


def health(endpoint: Endpoint) -> None:
    """`/healthz`, `/readyz` and `/metrics` answer `200` without a token."""
    for path in ("/healthz", "/readyz", "/metrics"):
        answer = endpoint.call("GET", path, token="")
        if answer.status != 200:
            raise Broken(f"{path} answers {answer.status}, 200 is wanted")


def token(endpoint: Endpoint) -> None:
    """Without a token, or with an unknown one, `/v1/card` and `/v1/score` answer `401`."""
    body = encoded([example("token", new_picture()[0])])
    for wrong in ("", "no-token-of-this-service"):
        endpoint.call("GET", "/v1/card", token=wrong).expect_problem(401)
        endpoint.call("POST", "/v1/score", token=wrong, content=body).expect_problem(401)


def scores(endpoint: Endpoint) -> None:
    """An item gets one finite score for each of its responses, under its id."""
    name, content = new_picture()
    endpoint.scores([example("scores", name)], {name: content})


def unscorable(endpoint: Endpoint) -> None:
    """Empty, long and foreign responses are scored or called unscorable; the request never fails for them."""
    name, content = new_picture()
    endpoint.score([example("odd", name, "", "noise " * 2000, "¿Qué? 图片 \u0000 🙂")], {name: content})


def deterministic(endpoint: Endpoint) -> None:
    """The same request gets the same scores."""
    name, content = new_picture()
    first, second = (endpoint.scores([example("again", name)], {name: content})[0] for _ in range(2))
    _same(first, second, "asked twice")


def order(endpoint: Endpoint) -> None:
    """A response's score does not depend on its place among the others."""
    name, content = new_picture()
    ahead = endpoint.scores([example("order", name)], {name: content})[0]
    back = endpoint.scores([example("order", name, *reversed(RESPONSES))], {name: content})[0]
    _same(ahead, tuple(reversed(back)), "in the other order")


def batches(endpoint: Endpoint) -> None:
    """An item's scores do not depend on what else is in the request."""
    if endpoint.card.limits.items < 2:
        raise Skipped("the card takes one item a request")
    pictures = dict(new_picture() for _ in range(2))
    items = [example(f"batch-{place}", name) for place, name in enumerate(pictures)]
    together = endpoint.scores(items, pictures)
    for item, found in zip(items, together, strict=True):
        _same(endpoint.scores([item], pictures)[0], found, "alone and with another item")


def images(endpoint: Endpoint) -> None:
    """A picture of which the service has no bytes is asked for by `409`, and is kept once it was sent."""
    name, content = new_picture()
    item = example("images", name)
    first = endpoint.post(encoded([item]))
    if first.status == 200:
        raise Skipped("the service scores without looking at pictures")
    missing = first.expect(409).json()
    if missing != {"missing_images": [name]}:
        raise Broken(f'409 says {str(missing)[:200]}; {{"missing_images": ["{name[:8]}…"]}} is wanted')
    endpoint.post(encoded([item], {name: content})).expect(200)
    if endpoint.post(encoded([item])).status == 409:
        raise Broken("the bytes were sent, and the next request is asked for them again")


def image_hashes(endpoint: Endpoint) -> None:
    """Bytes that do not have the hash under which they come are refused with `422`."""
    (name, _), (_, other) = new_picture(), new_picture()
    endpoint.post(encoded([example("hash", name)], {name: other})).expect_problem(422)


def fields(endpoint: Endpoint) -> None:
    """A request that is no JSON, has an unknown field or is of another contract is refused with `422`."""
    request = json.loads(encoded([example("fields", new_picture()[0])]))
    endpoint.post(b"{").expect_problem(422)
    changes: tuple[dict[str, object], ...] = ({"unknown": 1}, {"contract": "mor.reward/0"}, {"items": []})
    for change in changes:
        answer = endpoint.post(json.dumps({**request, **change}).encode())
        if answer.status != 422:
            raise Broken(f"{next(iter(change))!r}: answered {answer.status}, 422 is wanted")
        answer.expect_problem(422)


def item_limit(endpoint: Endpoint) -> None:
    """More items than the card's `limits.items` are refused with `413`."""
    _over(endpoint, [_worded(f"item-{place}") for place in range(endpoint.card.limits.items + 1)])


def response_limit(endpoint: Endpoint) -> None:
    """More responses to an item than the card's `limits.responses` are refused with `413`."""
    _over(endpoint, [_worded("responses", *["a"] * (endpoint.card.limits.responses + 1))])


def byte_limit(endpoint: Endpoint) -> None:
    """A body over the card's `limits.request_bytes` is refused with `413`."""
    most = endpoint.card.limits.request_bytes
    if most > _LARGEST_TRY:
        raise Skipped(f"the card takes {most} bytes, more than are sent to try")
    body = encoded([_worded("bytes")])
    endpoint.post(body + b" " * (most + 1 - len(body))).expect_problem(413)


def concurrency(endpoint: Endpoint) -> None:
    """As many requests at a time as the card's `limits.concurrency` (here at most 8) are scored."""
    most = min(endpoint.card.limits.concurrency, _MOST_AT_ONCE)
    name, content = new_picture()
    endpoint.score([example("first", name)], {name: content})
    bodies = [encoded([example(f"at-once-{place}", name)]) for place in range(most)]
    with ThreadPoolExecutor(most) as pool:
        for answer in pool.map(endpoint.post, bodies):
            answer.expect(200)


def deadline(endpoint: Endpoint) -> None:
    """A request whose deadline has passed is scored, or refused with `429` or `503` and `Retry-After`."""
    name, content = new_picture()
    body = encoded([example("deadline", name)], {name: content})
    answer = endpoint.post(body, **{"X-MoR-Deadline-Ms": "0"}).expect(200, 429, 503)
    if answer.status != 200 and not _seconds(answer):
        raise Broken(f"{answer.status} without Retry-After in seconds")


CHECKS: dict[str, Callable[[Endpoint], None]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        card, health, token, scores, unscorable, deterministic, order, batches, images, image_hashes, fields,
        item_limit, response_limit, byte_limit, concurrency, deadline,
    )
}  # fmt: skip


def _worded(name: str, *responses: str) -> ScoreItem:
    """An item without a picture, which is refused for its size before anybody looks for one."""
    message = {"role": "user", "content": "Name a colour."}
    return ScoreItem.model_validate({"item_id": name, "messages": [message], "responses": responses or ("red", "tree")})


def _over(endpoint: Endpoint, items: list[ScoreItem]) -> None:
    body = encoded(items)
    if len(body) > min(_LARGEST_TRY, endpoint.card.limits.request_bytes):
        raise Skipped(f"a request over this limit would have {len(body)} bytes, which is over another one")
    endpoint.post(body).expect_problem(413)


def _same(first: tuple[float, ...], second: tuple[float, ...], how: str) -> None:
    """Scores are compared with the range that they have, or with 1 where that is more."""
    size = max(1.0, max(first) - min(first))
    gap = max(abs(one - other) for one, other in zip(first, second, strict=True))
    if gap > _TOLERANCE * size:
        raise Broken(f"the scores differ by {gap:.3g} {how}: {_shown(first)} and {_shown(second)}")


def _shown(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _seconds(answer: Answer) -> bool:
    return str(answer.headers.get("retry-after", "")).isdigit()
