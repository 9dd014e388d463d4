"""Shapes of live groups, which honeypots imitate: size, repetition, length, and pictures that were sent before.

A honeypot group gets the shape of a live group drawn from the latest ones, and the anchor and texts that fit it best.
It must not copy the shapes of one call in their order: a client would find its twin. Only groups of runs count: a
caller of ``/v1/reward`` could mark honeypots by a size that no run has.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mor_core.wire import Messages, image_hashes

from mor_router.objectives.objective_store import Anchor

_LATEST = 256
"""Live groups remembered for each objective: some steps of a run, so that shapes follow the policy."""
_PICTURES = 1 << 14
"""Hashes of pictures sent lately that are remembered."""
_NEAREST = 8
"""Anchors of the nearest shape among which the least used one is taken."""

_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass(frozen=True)
class GroupShape:
    """Features that a client can compare between groups, apart from the words."""

    counts: tuple[int, ...]
    """Number of occurrences of each distinct response, the largest first."""
    characters: float
    """Mean length of the distinct responses."""
    pictures: int
    times: int
    """Number of earlier times that its least known picture was sent; 0 without pictures."""

    @property
    def size(self) -> int:
        """Number of responses."""
        return sum(self.counts)


@dataclass(frozen=True)
class HoneypotGroup:
    """An anchor in the shape of a live group: its two responses among others, in random order."""

    anchor: Anchor
    responses: tuple[str, ...]
    chosen: int
    """Index of the anchor's chosen response in ``responses``."""
    rejected: int | None
    """Index of the rejected one; ``None``: all responses are alike, and the group only completes a call."""


class RecentShapes:
    """Shapes of the latest live groups by objective, and the pictures that clients have been sent lately."""

    def __init__(self) -> None:
        self._groups: dict[str, deque[GroupShape]] = {}
        self._pictures: OrderedDict[str, int] = OrderedDict()

    def observe(self, objective: str, groups: Sequence[tuple[Messages, Sequence[str]]]) -> None:
        """Remember live groups of runs, each with its messages and responses."""
        shapes = self._groups.setdefault(objective, deque(maxlen=_LATEST))
        for messages, responses in groups:
            if len(responses) < 2:
                continue  # no honeypot can have one response: it compares nothing
            counts = Counter(responses)
            hashes = image_hashes(messages)
            shapes.append(
                GroupShape(
                    tuple(sorted(counts.values(), reverse=True)),
                    sum(map(len, counts)) / len(counts),
                    len(hashes),
                    self.times(hashes),
                )
            )
        for messages, _ in groups:
            self.sent(messages)

    def draw(self, objective: str, count: int) -> list[GroupShape]:
        """Draw the shapes of ``count`` of the latest live groups; none where none compared responses."""
        latest = self._groups[objective]
        return _random.choices(latest, k=count) if latest else []

    def times(self, hashes: Collection[str]) -> int:
        """Return how often the least known of these pictures was sent lately; 0 where there are none."""
        return min((self._pictures.get(digest, 0) for digest in hashes), default=0)

    def known(self, hashes: Collection[str]) -> bool:
        """Return whether all these pictures were sent lately; true where there are none."""
        return all(digest in self._pictures for digest in hashes)

    def sent(self, messages: Messages) -> None:
        """Remember the pictures of a group that is sent."""
        for digest in image_hashes(messages):
            self._pictures[digest] = self._pictures.get(digest, 0) + 1
            self._pictures.move_to_end(digest)
        while len(self._pictures) > _PICTURES:
            self._pictures.popitem(last=False)


def choose_anchors(
    shapes: Iterable[GroupShape],
    count: int,
    candidates: Sequence[Anchor],
    used: Mapping[str, int],
    recent: RecentShapes,
) -> list[tuple[Anchor, GroupShape]]:
    """Choose ``count`` anchors with a shape for each, no two with a common picture: the least used of the nearest ones.

    No picture comes more often than that of the live group: a client would recognise it. ``used``: digest -> number of
    times that the anchor was sent. Shapes that no anchor fits are passed over, so there may be fewer anchors.
    """
    chosen: list[tuple[Anchor, GroupShape]] = []
    left = _random.sample(list(candidates), len(candidates))
    for shape in shapes:
        fitting = [anchor for anchor in left if recent.times(image_hashes(anchor.messages)) <= shape.times]
        if len(chosen) == count or not fitting:
            continue
        fitting.sort(key=lambda anchor: _distance(anchor, shape, recent))
        best = min(fitting[:_NEAREST], key=lambda anchor: used[anchor.digest])
        chosen.append((best, shape))
        left = [anchor for anchor in left if anchor is not best and not _share_picture(anchor, best)]
    return chosen


def honeypot_group(anchor: Anchor, shape: GroupShape, fillers: Sequence[str]) -> HoneypotGroup:
    """Build a group of this shape in random order: the anchor's two responses and the first other texts of ``fillers``.

    Too few fillers are repeated, as a policy repeats itself.

    Raises:
        ValueError: a group of one response, which compares nothing.
    """
    if shape.size < 2:
        raise ValueError(f"got a group of {shape.size}; an anchor needs two responses or more")
    pair = [anchor.chosen, anchor.rejected]
    others = [text for text in dict.fromkeys(fillers) if text not in pair]
    texts = [*pair, *others][: len(shape.counts)]
    if len(texts) == 1:
        return HoneypotGroup(anchor, (_random.choice(pair),) * shape.size, 0, None)
    counts = _random.sample(shape.counts, len(shape.counts))
    for surplus in counts[len(texts) :]:
        counts[_random.randrange(len(texts))] += surplus
    repeated = [text for text, count in zip(texts, counts, strict=False) for _ in range(count)]
    responses = tuple(_random.sample(repeated, len(repeated)))
    return HoneypotGroup(anchor, responses, responses.index(anchor.chosen), responses.index(anchor.rejected))


def _distance(anchor: Anchor, shape: GroupShape, recent: RecentShapes) -> tuple[bool, int, int, float]:
    """Order anchors by likeness: pictures first, because no filler changes them; then distinct texts; then length."""
    hashes = image_hashes(anchor.messages)
    texts = {anchor.chosen, anchor.rejected, *anchor.others}
    characters = sum(map(len, texts)) / len(texts)
    return (
        len(hashes) != shape.pictures,
        shape.times - recent.times(hashes),
        max(0, len(shape.counts) - len(texts)),
        abs(characters - shape.characters),
    )


def _share_picture(one: Anchor, other: Anchor) -> bool:
    return not set(image_hashes(one.messages)).isdisjoint(image_hashes(other.messages))
