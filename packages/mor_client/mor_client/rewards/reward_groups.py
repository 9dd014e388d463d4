"""Groups to reward, from prompts, responses and pictures in the shapes that trainers have; and their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mor_core import images
from mor_core.datafiles.conversations import conversation, own_pictures
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.notebook_tables import NotebookTable
from mor_core.objectives import RequestedObjective
from mor_core.wire import ClientScore, Finite, ObjectiveShare, RewardItem
from pydantic import ValidationError

from mor_client.errors import NoReward
from mor_client.given_arguments import WrongArgument, kind_of, listed
from mor_client.pictures import Picture, picture_bytes


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
        cells = listed("images", images, "pictures") or own_pictures(prompt)
        named = [_named(picture_bytes(cell)) for cell in cells]
        texts = [_text(response) for response in listed("responses", responses, "texts")]
        try:
            item = RewardItem(
                item_id=name,
                messages=conversation(_turns(prompt), [digest for digest, _ in named]),
                responses=tuple(texts),
                objective=objective,
                domain=domain,
                public=public,
            )
        except ValidationError as error:
            raise Invalid(f"group {str(name)[:80]!r}: {describe(error)}") from error
        return cls(item, dict(named))


class GroupResult(NotebookTable):
    """Rewards of one group, or why it has none."""

    item_id: str
    status: Literal["ok", "error"]
    rewards: tuple[Finite, ...] | None
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


def _turns(prompt: Any) -> Any:
    """Return the prompt as the parser of conversations takes it: a text, or a list of messages.

    Raises:
        WrongArgument: it is something else, such as one message.
    """
    return prompt if isinstance(prompt, str) else listed("prompt", prompt, "messages, or a text")


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
        raise WrongArgument(
            f"responses: got {kind_of(response)}, wanted a text or one message of the assistant; give its text"
        )
    return response
