"""Anchor holdout: the anchors that are sent as honeypots only. A fit never sends them, so no client knows them from it.

The draw goes by picture (by question where there is none), so that a held-out anchor cannot be recognised by the
picture of another one, and by a random key of this router, so that no client can compute it. An anchor that is
uploaded again stays on its side, unless so few pictures are left that whole ones would exceed the share.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mor_core.errors import Invalid
from mor_core.stored import StoredEntries
from mor_core.wire import image_hashes
from redis.asyncio import Redis

from mor_router.objectives.objective_store import Anchor
from mor_router.store import ANCHOR_HOLDOUT

_KEY = "key"
_DRAWN = re.compile(rb"[0-9a-f]{64}")
_HOLDOUT = StoredEntries("anchor_holdout")


class AnchorHoldout:
    """Division of anchors into those that fits send and those that are held out."""

    def __init__(self, redis: Redis, share: float) -> None:
        self._redis = redis
        self._share = share
        self._key: bytes | None = None

    async def split(self, anchors: Sequence[Anchor]) -> tuple[list[Anchor], list[Anchor]]:
        """Return the anchors that fits send, and the held-out ones."""
        if not self._share:
            return list(anchors), []
        if self._key is None:
            self._key = await self._stored_key()
        draws = {anchor.digest: _draw(self._key, anchor) for anchor in anchors}
        counts = Counter(draws.values())
        held_out: set[float] = set()
        room = self._share * len(anchors)
        for draw in sorted(draw for draw in counts if draw < self._share):
            if counts[draw] <= room:
                held_out.add(draw)
                room -= counts[draw]
        shown = [anchor for anchor in anchors if draws[anchor.digest] not in held_out]
        return shown, [anchor for anchor in anchors if draws[anchor.digest] in held_out]

    async def never_held_out(self, anchors: Sequence[Anchor]) -> list[Anchor]:
        """Return those that no division holds out: clients may be shown their pictures before they are anchors."""
        if not self._share:
            return list(anchors)
        if self._key is None:
            self._key = await self._stored_key()
        return [anchor for anchor in anchors if _draw(self._key, anchor) >= self._share]

    async def _stored_key(self) -> bytes:
        """Return the key of the draw; make one where there is none, or none that can be used."""
        reading = _HOLDOUT.fetch(self._redis, "HGET", ANCHOR_HOLDOUT, _KEY)
        stored: Any = await _HOLDOUT.read(ANCHOR_HOLDOUT, reading, b"")
        found = _HOLDOUT.parse(ANCHOR_HOLDOUT, stored, _checked)
        if found is not None:
            return found
        if stored is not None:
            await self._redis.delete(ANCHOR_HOLDOUT)
        await self._redis.hsetnx(ANCHOR_HOLDOUT, _KEY, secrets.token_hex(32))
        made: Any = await _HOLDOUT.fetch(
            self._redis, "HGET", ANCHOR_HOLDOUT, _KEY
        )  # another replica may have been first
        return bytes(made)


def _checked(key: bytes) -> bytes:
    """Check the key of the draw.

    Raises:
        Invalid: a key of another form, which somebody may know.
    """
    if _DRAWN.fullmatch(key) is None:
        raise Invalid("the key of the draw is none that this router made")
    return key


def _draw(secret: bytes, anchor: Anchor) -> float:
    """Return a number in [0, 1), uniform over pictures, the same for all anchors of one picture."""
    identity = "|".join(image_hashes(anchor.messages)) or "\n".join(message.text for message in anchor.messages)
    return int.from_bytes(hmac.digest(secret, identity.encode(), hashlib.sha256)[:8], "big") / 2**64
