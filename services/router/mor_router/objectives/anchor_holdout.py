"""Anchor holdout: the anchors that are sent as honeypots only. A fit never sends them, so no client knows them from it.

The draw goes by picture (by question where there is none), so that a held-out anchor cannot be recognised by the
picture of another one, and by a random key of this router, so that no client can compute it. An anchor that is
uploaded again stays on its side, unless so few pictures are left that whole ones would exceed the share.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial

from mor_core.stored import StoredEntries
from mor_core.wire import image_hashes
from redis.asyncio import Redis

from mor_router.objectives.objective_store import Anchor
from mor_router.store import ANCHOR_HOLDOUT

_KEY = "key"
_HOLDOUT = StoredEntries("anchor_holdout")

# KEYS: hash. ARGV: field, a new key. A key of another form is replaced: somebody may know it.
_MAKE = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found and #found == #ARGV[2] and not found:find('[^0-9a-f]') then return {found, 0} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {ARGV[2], found and 1 or 0}
"""


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
        """Return the key of the draw; make one where there is none, or none that can be used.

        Replicas that make one at once have the same.
        """
        script, made = self._redis.register_script(_MAKE), secrets.token_hex(32)
        attempt = partial(script, keys=[ANCHOR_HOLDOUT], args=[_KEY, made])
        found, is_new = await _HOLDOUT.write(self._redis, {ANCHOR_HOLDOUT: "hash"}, attempt)
        if is_new:
            _HOLDOUT.refuse(ANCHOR_HOLDOUT, "the key of the draw is none that this router made; it is made anew")
        return bytes(found)


def _draw(secret: bytes, anchor: Anchor) -> float:
    """Return a number in [0, 1), uniform over pictures, the same for all anchors of one picture."""
    identity = "|".join(image_hashes(anchor.messages)) or "\n".join(message.text for message in anchor.messages)
    return int.from_bytes(hmac.digest(secret, identity.encode(), hashlib.sha256)[:8], "big") / 2**64
