"""Checks of the clauses of ``docs/reward-contract.md`` that can be tested over HTTP; a docstring is the clause."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mor_core.images import sha256
from mor_core.wire import ScoreItem

from mor_reward.conformance.endpoint import (
    RESPONSES,
    CheckSkipped,
    ClauseBroken,
    Endpoint,
    ProbeReply,
    encode_request,
    example,
    new_picture,
)

_TOLERANCE = 1e-3
"""Tolerance as a fraction of the range of the compared scores: batches of different sizes round differently."""
_MAX_BODY_BYTES = 32 << 20
"""Largest request that a check sends, in bytes: enough for usual limits, quick over a slow link."""
_MAX_CONCURRENT = 8
"""Most simultaneous requests: the check must not disturb a service in use."""


def card(endpoint: Endpoint) -> None:
    """`GET /v1/card` returns a card with the model's name and version and limits of at least 1."""
    _ = endpoint.card


def health(endpoint: Endpoint) -> None:
    """`/healthz` and `/readyz` return `200` without a token."""
    for path in ("/healthz", "/readyz"):
        answer = endpoint.call("GET", path, token="")
        if answer.status != 200:
            raise ClauseBroken(f"{path} returns {answer.status}, expected 200")


def token(endpoint: Endpoint) -> None:
    """Without a token, or with an unknown one, `/v1/card` and `/v1/score` return `401`."""
    body = encode_request([example("token", new_picture()[0])])
    for wrong in ("", "no-token-of-this-service"):
        endpoint.call("GET", "/v1/card", token=wrong).expect_problem(401)
        endpoint.call("POST", "/v1/score", token=wrong, content=body).expect_problem(401)


def scores(endpoint: Endpoint) -> None:
    """An item gets one finite score for each of its responses, under its `item_id`."""
    name, content = new_picture()
    endpoint.scores([example("scores", name)], {name: content})


def unscorable(endpoint: Endpoint) -> None:
    """Empty, long and foreign responses are scored or marked `unscorable`; the request never fails for them."""
    name, content = new_picture()
    endpoint.score([example("odd", name, "", "noise " * 2000, "¿Qué? 图片 \u0000 🙂")], {name: content})


def deterministic(endpoint: Endpoint) -> None:
    """Equal requests get equal scores."""
    name, content = new_picture()
    first, second = (endpoint.scores([example("again", name)], {name: content})[0] for _ in range(2))
    _require_equal(first, second, "on repetition")


def order(endpoint: Endpoint) -> None:
    """A response's score does not depend on its position among the responses."""
    name, content = new_picture()
    forward = endpoint.scores([example("order", name)], {name: content})[0]
    backward = endpoint.scores([example("order", name, *reversed(RESPONSES))], {name: content})[0]
    _require_equal(forward, tuple(reversed(backward)), "in the reverse order")


def batches(endpoint: Endpoint) -> None:
    """An item's scores do not depend on the other items of the request."""
    if endpoint.card.limits.items < 2:
        raise CheckSkipped("the card allows one item per request")
    pictures = dict(new_picture() for _ in range(2))
    items = [example(f"batch-{place}", name) for place, name in enumerate(pictures)]
    together = endpoint.scores(items, pictures)
    for item, found in zip(items, together, strict=True):
        _require_equal(endpoint.scores([item], pictures)[0], found, "alone and with another item")


def images(endpoint: Endpoint) -> None:
    """The service requests the bytes of an unknown picture by `409`, and keeps a picture that it received."""
    name, content = new_picture()
    item = example("images", name)
    first = endpoint.post(encode_request([item]))
    if first.status == 200:
        raise CheckSkipped("the service scores without pictures")
    missing = first.expect(409).json()
    if missing != {"missing_images": [name]}:
        raise ClauseBroken(f'409 returns {str(missing)[:200]}, expected {{"missing_images": ["{name[:8]}…"]}}')
    endpoint.post(encode_request([item], {name: content})).expect(200)
    if endpoint.post(encode_request([item])).status == 409:
        raise ClauseBroken("the service requests bytes again that were sent before")


def image_hashes(endpoint: Endpoint) -> None:
    """Bytes that do not match the hash under which they are sent are refused with `422`."""
    (name, _), (_, other) = new_picture(), new_picture()
    endpoint.post(encode_request([example("hash", name)], {name: other})).expect_problem(422)


def fields(endpoint: Endpoint) -> None:
    """A request that is not JSON, has an unknown field or is of another contract is refused with `422`."""
    request = json.loads(encode_request([example("fields", new_picture()[0])]))
    endpoint.post(b"{").expect_problem(422)
    changes: tuple[dict[str, object], ...] = ({"unknown": 1}, {"contract": "mor.reward/0"}, {"items": []})
    for change in changes:
        answer = endpoint.post(json.dumps({**request, **change}).encode())
        if answer.status != 422:
            raise ClauseBroken(f"{next(iter(change))!r}: returned {answer.status}, expected 422")
        answer.expect_problem(422)


def item_limit(endpoint: Endpoint) -> None:
    """More items than the card's `limits.items` are refused with `413`."""
    _require_too_large(endpoint, [_text_item(f"item-{place}") for place in range(endpoint.card.limits.items + 1)])


def response_limit(endpoint: Endpoint) -> None:
    """More responses to an item than the card's `limits.responses` are refused with `413`."""
    _require_too_large(endpoint, [_text_item("responses", *["a"] * (endpoint.card.limits.responses + 1))])


def byte_limit(endpoint: Endpoint) -> None:
    """A body over the card's `limits.request_bytes` is refused with `413`."""
    most = endpoint.card.limits.request_bytes
    if most > _MAX_BODY_BYTES:
        raise CheckSkipped(f"the card allows {most} bytes, more than this check sends")
    body = encode_request([_text_item("bytes")])
    endpoint.post(body + b" " * (most + 1 - len(body))).expect_problem(413)


def image_limit(endpoint: Endpoint) -> None:
    """An image over the card's `limits.image_bytes` makes at most its own item `unscorable`; the others are scored."""
    limits = endpoint.card.limits
    if limits.image_bytes is None:
        raise CheckSkipped("the card limits no image")
    if limits.items < 2:
        raise CheckSkipped("the card allows one item per request")
    (_, picture), (name, content) = new_picture(), new_picture()
    large = picture + bytes(max(0, limits.image_bytes + 1 - len(picture)))
    body = encode_request(
        [example("large", sha256(large)), example("small", name)], {sha256(large): large, name: content}
    )
    if len(body) > min(_MAX_BODY_BYTES, limits.request_bytes):
        raise CheckSkipped(f"a request over this limit would have {len(body)} bytes, which exceeds another limit")
    found = endpoint.post(body).expect(200).json()
    statuses = {item.get("item_id"): item.get("status") for item in found.get("items", [])}
    if statuses.get("large") not in ("unscorable", "ok") or statuses.get("small") != "ok":
        raise ClauseBroken(f"returned {str(statuses)[:200]}, expected unscorable for the large image, ok for the other")


def concurrency(endpoint: Endpoint) -> None:
    """The service scores `limits.concurrency` requests at a time (this check sends at most 8)."""
    most = min(endpoint.card.limits.concurrency, _MAX_CONCURRENT)
    name, content = new_picture()
    endpoint.score([example("first", name)], {name: content})
    bodies = [encode_request([example(f"at-once-{place}", name)]) for place in range(most)]
    with ThreadPoolExecutor(most) as pool:
        for answer in pool.map(endpoint.post, bodies):
            answer.expect(200)


def deadline(endpoint: Endpoint) -> None:
    """A request whose deadline has passed is scored, or refused with `429` or `503` and `Retry-After`."""
    name, content = new_picture()
    body = encode_request([example("deadline", name)], {name: content})
    answer = endpoint.post(body, **{"X-MoR-Deadline-Ms": "0"}).expect(200, 429, 503)
    if answer.status != 200 and not _has_retry_after(answer):
        raise ClauseBroken(f"{answer.status} without Retry-After in seconds")


CHECKS: dict[str, Callable[[Endpoint], None]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        card, health, token, scores, unscorable, deterministic, order, batches, images, image_hashes, fields,
        item_limit, response_limit, byte_limit, image_limit, concurrency, deadline,
    )
}  # fmt: skip


def _text_item(name: str, *responses: str) -> ScoreItem:
    """Make an item without a picture, which the service must refuse for its size alone."""
    message = {"role": "user", "content": "Name a colour."}
    return ScoreItem.model_validate({"item_id": name, "messages": [message], "responses": responses or ("red", "tree")})


def _require_too_large(endpoint: Endpoint, items: list[ScoreItem]) -> None:
    body = encode_request(items)
    if len(body) > min(_MAX_BODY_BYTES, endpoint.card.limits.request_bytes):
        raise CheckSkipped(f"a request over this limit would have {len(body)} bytes, which exceeds another limit")
    endpoint.post(body).expect_problem(413)


def _require_equal(first: tuple[float, ...], second: tuple[float, ...], condition: str) -> None:
    """Compare scores relative to their range, or to 1 if that is larger."""
    size = max(1.0, max(first) - min(first))
    gap = max(abs(one - other) for one, other in zip(first, second, strict=True))
    if gap > _TOLERANCE * size:
        raise ClauseBroken(f"the scores differ by {gap:.3g} {condition}: {_format(first)} and {_format(second)}")


def _format(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _has_retry_after(answer: ProbeReply) -> bool:
    return str(answer.headers.get("retry-after", "")).isdigit()
