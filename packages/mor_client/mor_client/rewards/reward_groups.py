"""Groups to reward, from prompts, responses and pictures in the shapes that trainers have; and their rewards."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mor_core import images
from mor_core.datafiles.conversations import conversation, own_pictures
from mor_core.errors import Invalid
from mor_core.failures import describe, describe_failure
from mor_core.objectives import RequestedObjective
from mor_core.wire import ClientScore, ObjectiveShare, RewardItem
from PIL import Image
from pydantic import BaseModel, ValidationError

from mor_client.errors import NoReward

Picture = bytes | str | Path | Image.Image | Mapping[str, Any]
"""Encoded bytes, a data URI, a file, an image of Pillow, or a cell ``{"bytes", "path"}`` of Parquet."""


@dataclass(frozen=True)
class RewardGroup:
    """Prompt and the responses that are compared with each other. ``of`` makes one."""

    item: RewardItem
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[Mapping[str, Any]],
        responses: Sequence[Any],
        *,
        images: Sequence[Picture] = (),
        objective: RequestedObjective | None = None,
        domain: str | None = None,
        public: bool = False,
        name: str = "group",
    ) -> RewardGroup:
        """Make a group.

        Args:
            prompt: a user's text, or messages of chat; image parts may carry their pictures.
            responses: texts, or the assistant's messages.
            images: pictures that the prompt shows, in the order of its image parts.
            objective: name, text or blend, see ``docs/objectives.md``; by default the call's.
            domain: label of the prompt, for the clients' rules.
            public: pictures and texts of the prompt are public.
            name: identifier of the group in its result.

        Raises:
            Invalid: names the argument and the cure.
        """
        cells = [*images] or own_pictures(prompt)
        shown = [_named(picture_bytes(cell)) for cell in cells]
        try:
            item = RewardItem(
                item_id=name,
                messages=conversation(prompt, [digest for digest, _ in shown]),
                responses=tuple(_text(response) for response in responses),
                objective=objective,
                domain=domain,
                public=public,
            )
        except ValidationError as error:
            raise Invalid(f"group {name[:80]!r}: {describe(error)}") from error
        return cls(item, dict(shown))


class GroupResult(BaseModel):
    """Rewards of one group, or why it has none."""

    item_id: str
    status: Literal["ok", "error"]
    rewards: tuple[float, ...] | None
    """One reward for each response, in logits; ``None`` unless ``status`` is ``ok``. Never 0 for a missing one."""
    detail: str | None
    """Reason why there is no reward."""
    note: str | None = None
    objectives: tuple[ObjectiveShare, ...] = ()
    gate_version: int
    clients: tuple[ClientScore, ...] | None = None
    """Each client's scores and weight; ``None`` for a token of scope ``scorer``."""

    def required(self) -> tuple[float, ...]:
        """Return the rewards.

        Raises:
            NoReward: the group has none.
        """
        if self.rewards is None:
            raise NoReward(f"group {self.item_id[:80]!r} has no reward: {self.detail}")
        return self.rewards


def picture_bytes(cell: Any) -> bytes:
    """Return the encoded bytes of a picture.

    Raises:
        Invalid: it is none, or its file cannot be read.
    """
    if isinstance(cell, Image.Image):
        content = io.BytesIO()
        cell.save(content, "PNG")
        return content.getvalue()
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Mapping) and (given := cell.get("bytes") or cell.get("path") or cell.get("image")) is not None:
        return picture_bytes(given)
    if isinstance(cell, str) and cell.startswith(("data:", "http://", "https://")):
        return images.bytes_of_url(cell)
    if isinstance(cell, str | Path):
        try:
            return Path(str(cell).removeprefix("file://")).read_bytes()
        except (OSError, ValueError) as error:
            reason = describe_failure(error)
            raise Invalid(
                f"images: {str(cell)[:80]!r} cannot be read ({reason}); give a picture or its file"
            ) from error
    raise Invalid(f"images: got {type(cell).__name__}; give bytes, a file, a data URI or an image of Pillow")


def _named(content: bytes) -> tuple[str, bytes]:
    return images.sha256(content), content


def _text(response: Any) -> str:
    """Return the text of a response: a string, one assistant message, or a list with one. It may be empty.

    Raises:
        Invalid: it is none of these.
    """
    if isinstance(response, Sequence) and not isinstance(response, str) and len(response) == 1:
        response = response[0]
    if isinstance(response, Mapping) and response.get("role", "assistant") == "assistant":
        response = response.get("content")
    if isinstance(response, Sequence) and not isinstance(response, str):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in response]
        texts = [part for part in parts if isinstance(part, str)]
        response = "".join(texts) if len(texts) == len(parts) else response
    if not isinstance(response, str):
        raise Invalid(f"responses: got {type(response).__name__}; give a text or one message of the assistant")
    return response
