"""Rewards for a batch of responses as trainers have it: one row for each response, in any order.

A reward compares the responses to one prompt. So the rows are gathered by their prompts, and a prompt with a single
response is refused, as is one of whose group a part is missing: on several processes, each may hold a part.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mor_core.datafiles.conversations import own_pictures
from mor_core.errors import Invalid
from mor_core.objectives import RequestedObjective
from PIL import Image

from mor_client.errors import NoReward
from mor_client.given_arguments import WrongArgument, listed
from mor_client.rewards import GroupResult, RewardGroup
from mor_client.sdk import Mor

log = logging.getLogger(__name__)

_FAST = 1
"""Compression level of PNG: levels above take longer than sending what they save."""


@dataclass(frozen=True)
class ResponseRow:
    """Response with its prompt and the prompt's pictures."""

    prompt: Any
    """Text, or messages of chat; their image parts may carry the pictures."""
    response: Any
    images: Sequence[Any] = ()


class MixtureRewards:
    """Rewards of the mixture by one objective."""

    def __init__(
        self,
        objective: RequestedObjective | None = None,
        *,
        group_size: int | None = None,
        deadline_s: float | None = None,
        mor: Mor | None = None,
    ) -> None:
        """
        Args:
            objective: name, text or blend; ``None`` for that of the router's cold start.
            group_size: responses that each prompt has, to find groups of which a part is missing.
            deadline_s: seconds that clients have to score; by default the router's.
            mor: the installation; by default that of the environment and the configuration file.

        Raises:
            WrongArgument: ``group_size`` is no number of responses.
        """
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise WrongArgument(f"group_size: got {group_size!r}, wanted the number of responses to a prompt, an int")
        self.objective = objective
        self._group_size = group_size
        self._deadline_s = deadline_s
        self._mor = mor
        self._noted = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connections behind: another process makes its own from its environment."""
        return self.__dict__ | {"_mor": None}

    def _opened(self) -> Mor:
        if self._mor is None:
            self._mor = Mor()
        return self._mor

    def of(self, rows: Sequence[ResponseRow]) -> list[float | None]:
        """Return a reward for each row; ``None`` where its group has none.

        Raises:
            Invalid: a prompt has one response, or not ``group_size`` of them.
            ServiceError: the router refused, failed or did not respond.
        """
        groups = _Groups.of(rows, self._group_size)
        results = self._opened().rewards.score(groups.groups, objective=self.objective, deadline_s=self._deadline_s)
        return groups.spread(self._with_notes_logged(results))

    async def of_async(self, rows: Sequence[ResponseRow]) -> list[float | None]:
        """Return what ``of`` does, without blocking the event loop."""
        groups = _Groups.of(rows, self._group_size)
        results = await self._opened().rewards.score_async(
            groups.groups, objective=self.objective, deadline_s=self._deadline_s
        )
        return groups.spread(self._with_notes_logged(results))

    def _with_notes_logged(self, results: Sequence[GroupResult]) -> Sequence[GroupResult]:
        """Log the first note about rewards, such as that of a misspelt objective, for which clients count alike."""
        note = next((result.note for result in results if result.note), None)
        if note is not None and not self._noted:
            self._noted = True
            log.warning("the rewards of objective %r come with a note: %s", self.objective, note)
        return results

    def required(self, rows: Sequence[ResponseRow]) -> list[float]:
        """Return a reward for each row, for trainers that know no missing one.

        Raises:
            NoReward: a group has none.
            Invalid, ServiceError: as ``of``.
        """
        found = [reward for reward in self.of(rows) if reward is not None]
        if len(found) != len(rows):
            raise NoReward(
                f"{len(rows) - len(found)} of {len(rows)} responses have no reward, because too few clients scored "
                "them; see 'mor client list', and begin again from the last checkpoint"
            )
        return found


@dataclass(frozen=True)
class _Groups:
    groups: list[RewardGroup]
    places: list[list[int]]
    """Rows of each group."""

    @classmethod
    def of(cls, rows: Sequence[ResponseRow], group_size: int | None) -> _Groups:
        pictures = _Pictures()
        found: dict[Any, tuple[RewardGroup, list[int]]] = {}
        for place, row in enumerate(rows):
            images = [
                pictures.encoded(cell) for cell in listed("images", row.images, "pictures") or own_pictures(row.prompt)
            ]
            group = RewardGroup.of(row.prompt, [row.response], images=images)
            found.setdefault(group.item.messages, (group, []))[1].append(place)
        return cls(
            [
                RewardGroup.of(
                    rows[places[0]].prompt,
                    [rows[place].response for place in places],
                    images=[group.images[digest] for message in group.item.messages for digest in message.image_hashes],
                    name=_checked(places, group_size),
                )
                for group, places in found.values()
            ],
            [places for _, places in found.values()],
        )

    def spread(self, results: Sequence[GroupResult]) -> list[float | None]:
        rewards: list[float | None] = [None] * sum(map(len, self.places))
        for places, result in zip(self.places, results, strict=True):
            for place, reward in zip(places, result.rewards or [None] * len(places), strict=True):
                rewards[place] = reward
        return rewards


def _checked(places: Sequence[int], group_size: int | None) -> str:
    """Return a name for the group of these rows.

    Raises:
        Invalid: its responses are not those of a whole group.
    """
    if len(places) == 1 and group_size != 1:
        raise Invalid(
            f"row {places[0]} is the only response to its prompt here, and the score of one alone is no reward; keep "
            "all responses to a prompt in one process and one call"
        )
    if group_size is not None and len(places) % group_size:
        raise Invalid(
            f"{len(places)} responses to the prompt of row {places[0]}, and group_size is {group_size}; keep all "
            "responses to a prompt in one process and one call"
        )
    return f"row-{places[0]}"


class _Pictures:
    """Encoder of one batch's pictures, which are the same for all responses to a prompt."""

    def __init__(self) -> None:
        self._encoded: dict[tuple[str, tuple[int, int], bytes], bytes] = {}

    def encoded(self, cell: Any) -> Any:
        """Return the bytes of an image of Pillow; any other cell as it is."""
        if not isinstance(cell, Image.Image):
            return cell
        key = cell.mode, cell.size, hashlib.sha256(cell.tobytes()).digest()
        if key not in self._encoded:
            content = io.BytesIO()
            cell.save(content, "PNG", compress_level=_FAST)
            self._encoded[key] = content.getvalue()
        return self._encoded[key]


def row_images(columns: Mapping[str, Any], place: int) -> Sequence[Any]:
    """Return the pictures of one row of a batch's columns ``images`` or ``image``."""
    for name in ("images", "image"):
        if (shown := columns[name][place] if name in columns else None) is not None:
            return shown if isinstance(shown, list | tuple) else (shown,)
    return ()
