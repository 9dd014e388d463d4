"""Shapes of OpenRLHF's remote reward model: whole texts with their prompts, to rewards."""

from __future__ import annotations

import string
from typing import Annotated, Any

from mor_core.errors import Invalid
from mor_core.wire import Documented, Finite, Message
from pydantic import ConfigDict, Field

from mor_router.rewarding.coalescer import MOST_RESPONSES, GroupForm, PromptedResponse

Texts = Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_RESPONSES)]


class OpenRLHFForm(GroupForm):
    """Rules for groups, and for the chat template around prompts and responses."""

    strip: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=16)] = ()
    """Text of the policy's chat template that is cut from both ends of prompts and responses, such as ``<|im_end|>``.
    Repeatable."""

    def stripped(self, text: str) -> str:
        """Return ``text`` without the chat template, in whatever order its parts stand, in one pass from each end."""
        cut = (*self.strip, *string.whitespace)
        start, end = 0, len(text)
        while part := next((part for part in cut if text.startswith(part, start, end)), ""):
            start += len(part)
        while part := next((part for part in cut if text.endswith(part, start, end)), ""):
            end -= len(part)
        return text[start:end].strip()


class OpenRLHFRequest(Documented):
    """Request of OpenRLHF's ``--remote_rm_url``. Other fields, such as ``labels``, are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "query": ["How many bars are there? Four.", "How many bars are there? It is a chart."],
                    "prompts": ["How many bars are there?", "How many bars are there?"],
                    "labels": ["", ""],
                }
            ]
        },
    )

    query: Texts
    """Prompts, each with its response."""
    prompts: Texts
    """Prompts alone, as each query begins."""

    def responses(self, form: OpenRLHFForm) -> list[PromptedResponse]:
        """Return the responses with their prompts.

        Raises:
            Invalid: a query does not begin with its prompt.
        """
        if len(self.query) != len(self.prompts):
            raise Invalid(f"got {len(self.query)} queries and {len(self.prompts)} prompts; send one prompt per query")
        return [
            _response(place, query, prompt, form)
            for place, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True))
        ]


def _response(place: int, query: str, prompt: str, form: OpenRLHFForm) -> PromptedResponse:
    text = query.removeprefix(prompt)
    if not prompt or len(text) == len(query):
        raise Invalid(
            f"query[{place}] does not begin with prompts[{place}]; send the prompt as it stands in the query, with "
            "the chat template where that has it"
        )
    return PromptedResponse((Message(role="user", content=form.stripped(prompt)),), form.stripped(text))


class OpenRLHFResponse(Documented):
    """Rewards in logits, one for each query."""

    rewards: tuple[Finite, ...]
    scores: tuple[Finite, ...]
    """The same, for OpenRLHF's filter of prompts by score."""
    extra_logs: dict[str, Any] = Field(default_factory=dict)
