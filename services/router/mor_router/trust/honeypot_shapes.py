"""Shapes of live groups, which honeypots imitate: size, repetition, length, and what was sent before.

A honeypot gets the shape of a live group drawn from the latest ones, and the anchor and texts that fit it best. The
policy's own sample of that size is sent as it was drawn: nothing is more like a live group. Only groups of runs count:
a caller of ``/v1/reward`` could mark honeypots by a size that no run has.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mor_core.wire import Messages, image_hashes

from mor_router.objectives.objective_store import Anchor

_LATEST = 256
"""Live groups remembered for each lane: some steps of a run, so that shapes follow the policy."""
_REMEMBERED = 1 << 14
"""Pictures, and questions, sent lately that are remembered."""
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
    question: int
    """Characters of the question: questions of one kind have similar lengths, and the same sort of answers."""
    pictures: int
    times: int
    """Number of earlier times that its least known picture was sent; 0 without pictures."""
    asked: int
    """Number of earlier times that its question was sent about the same pictures."""

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
    """Index of the rejected one; ``None``: all responses are alike, as in a share of the live groups, and compare
    nothing."""


class _Sent:
    """Number of times that each of the latest things was sent."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, int] = OrderedDict()

    def __getitem__(self, name: str) -> int:
        return self._times.get(name, 0)

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            self._times[name] = self[name] + 1
            self._times.move_to_end(name)
        while len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)


class RecentShapes:
    """Shapes of the latest live groups by lane of ``HoneypotCall``, and what was sent lately."""

    def __init__(self) -> None:
        self._groups: dict[str, deque[GroupShape]] = {}
        self._pictures = _Sent()
        self._questions = _Sent()

    def observe(self, lane: str, groups: Sequence[tuple[Messages, Sequence[str]]]) -> None:
        """Remember live groups of runs, each with its messages and responses."""
        shapes = self._groups.setdefault(lane, deque(maxlen=_LATEST))
        for messages, responses in groups:
            if len(responses) < 2:
                continue  # no honeypot can have one response: it compares nothing
            counts = Counter(responses)
            hashes = image_hashes(messages)
            shapes.append(
                GroupShape(
                    tuple(sorted(counts.values(), reverse=True)),
                    sum(map(len, counts)) / len(counts),
                    _characters(messages),
                    len(hashes),
                    self.times(hashes),
                    self.asked(messages),
                )
            )
        for messages, _ in groups:
            self.sent(messages)

    def draw(self, lane: str, count: int) -> list[GroupShape]:
        """Draw the shapes of ``count`` of the latest live groups; none where none compared responses."""
        latest = self._groups.get(lane)
        return _random.choices(latest, k=count) if latest else []

    def forget(self, lane: str) -> None:
        """Forget the live groups of a lane."""
        self._groups.pop(lane, None)

    def times(self, hashes: Collection[str]) -> int:
        """Return how often the least known of these pictures was sent lately; 0 where there are none."""
        return min((self._pictures[digest] for digest in hashes), default=0)

    def asked(self, messages: Messages) -> int:
        """Return how often this question was sent lately about these pictures."""
        return self._questions[_question(messages)]

    def outdated(self, messages: Messages, shape: GroupShape) -> bool:
        """Return whether question or pictures were sent since more often than those of a live group of this shape."""
        return self.asked(messages) > shape.asked or self.times(image_hashes(messages)) > shape.times

    def known(self, hashes: Collection[str]) -> bool:
        """Return whether all these pictures were sent lately; true where there are none."""
        return all(self._pictures[digest] for digest in hashes)

    def sent(self, messages: Messages) -> None:
        """Remember the pictures and the question of a group that is sent."""
        self._pictures.add(image_hashes(messages))
        self._questions.add([_question(messages)])


def choose_anchor(
    shapes: Iterable[GroupShape],
    candidates: Sequence[Anchor],
    used: Mapping[str, int],
    recent: RecentShapes,
    *,
    again: bool,
) -> tuple[Anchor, GroupShape] | None:
    """Choose an anchor for the first of these shapes that one fits: the least used of the nearest ones.

    Question and pictures were sent as often as those of the live group; with ``again``, less often will do. A client
    would recognise what is new, or known, at another time than in live groups. ``used``: digest -> number of times that
    the anchor was sent.
    """
    order = random.Random(_random.getrandbits(256))  # one secret seed: a secret draw for each anchor would take long
    left = [
        (anchor, recent.asked(anchor.messages), recent.times(image_hashes(anchor.messages)))
        for anchor in order.sample(list(candidates), len(candidates))
    ]
    for shape in shapes:
        fitting = [
            (shape.asked - asked, shape.times - times, _distance(anchor, shape), place)
            for place, (anchor, asked, times) in enumerate(left)
            if (asked, times) == (shape.asked, shape.times) or (again and asked <= shape.asked and times <= shape.times)
        ]
        nearest = [left[place][0] for *_, place in heapq.nsmallest(_NEAREST, fitting)]
        if nearest:
            return min(nearest, key=lambda anchor: used[anchor.digest]), shape
    return None


def honeypot_group(anchor: Anchor, shape: GroupShape, fillers: Sequence[str]) -> HoneypotGroup:
    """Build a group of this shape in random order.

    It is the policy's sample, where that has the size. Otherwise it holds the anchor's two responses and the first
    other texts of ``fillers``; too few of them are repeated, as a policy repeats itself.

    Raises:
        ValueError: a group of one response, which compares nothing.
    """
    if shape.size < 2:
        raise ValueError(f"got a group of {shape.size}; an anchor needs two responses or more")
    pair = [anchor.chosen, anchor.rejected]
    if len(shape.counts) == 1:
        return HoneypotGroup(anchor, (_random.choice(anchor.sample or pair),) * shape.size, 0, None)
    if len(anchor.sample) == shape.size:
        return _ordered(anchor, anchor.sample)
    others = [text for text in dict.fromkeys(fillers) if text not in pair]
    texts = [*pair, *others][: len(shape.counts)]
    counts = _random.sample(shape.counts, len(shape.counts))
    for surplus in counts[len(texts) :]:
        counts[_random.randrange(len(texts))] += surplus
    return _ordered(anchor, [text for text, count in zip(texts, counts, strict=False) for _ in range(count)])


def _ordered(anchor: Anchor, texts: Sequence[str]) -> HoneypotGroup:
    responses = tuple(_random.sample(list(texts), len(texts)))
    return HoneypotGroup(anchor, responses, responses.index(anchor.chosen), responses.index(anchor.rejected))


def _distance(anchor: Anchor, shape: GroupShape) -> tuple[bool, int, int, float]:
    """Order anchors by likeness: pictures and question first, because no filler changes them; then distinct texts; then
    length."""
    texts = {anchor.chosen, anchor.rejected, *anchor.others}
    lacking = len(shape.counts) - len(texts)
    as_drawn = len(anchor.sample) == shape.size
    return (
        len(image_hashes(anchor.messages)) != shape.pictures,
        abs(_characters(anchor.messages) - shape.question),
        abs(lacking) if as_drawn else max(0, lacking),
        abs(sum(map(len, texts)) / len(texts) - shape.characters),
    )


def _characters(messages: Messages) -> int:
    return sum(len(message.text) for message in messages)


def _question(messages: Messages) -> str:
    content = "\n".join((*image_hashes(messages), *(message.text for message in messages)))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
