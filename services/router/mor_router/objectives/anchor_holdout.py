"""The anchors that are asked in disguise only: a fit never shows them, so no client can know them from a fit.

Which ones is decided by picture (by question where there is none), so that a reserved anchor cannot be known by the
picture of another one, and by a random key of this router's, so that no client can compute it. An anchor that is
uploaded again stays on its side, unless so few pictures are left that whole ones would be more than the share.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mor_core.wire import image_hashes
from redis.asyncio import Redis

from mor_router.objectives.objectives import Anchor
from mor_router.store import RESERVE

_KEY = "key"


class Reserve:
    def __init__(self, redis: Redis, share: float) -> None:
        self._redis = redis
        self._share = share
        self._key: bytes | None = None

    async def split(self, anchors: Sequence[Anchor]) -> tuple[list[Anchor], list[Anchor]]:
        """Anchors to show at fits, and those kept back."""
        if not self._share:
            return list(anchors), []
        if self._key is None:
            await self._redis.hsetnx(RESERVE, _KEY, secrets.token_hex(32))
            stored: Any = await self._redis.hget(RESERVE, _KEY)
            self._key = bytes(stored)
        drawn = {anchor.digest: _uniform(self._key, anchor) for anchor in anchors}
        counts = Counter(drawn.values())
        reserved: set[float] = set()
        room = self._share * len(anchors)
        for place in sorted(place for place in counts if place < self._share):
            if counts[place] <= room:
                reserved.add(place)
                room -= counts[place]
        shown = [anchor for anchor in anchors if drawn[anchor.digest] not in reserved]
        return shown, [anchor for anchor in anchors if drawn[anchor.digest] in reserved]


def _uniform(secret: bytes, anchor: Anchor) -> float:
    """A number in [0, 1) that all anchors of one picture share."""
    seen = "|".join(image_hashes(anchor.messages)) or "\n".join(message.text for message in anchor.messages)
    return int.from_bytes(hmac.digest(secret, seen.encode(), hashlib.sha256)[:8], "big") / 2**64
