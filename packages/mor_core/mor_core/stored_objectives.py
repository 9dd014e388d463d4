"""Objectives as a router keeps them, and as its API takes and gives them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from mor_core.objectives import ObjectiveName
from mor_core.wire import Documented

COLD_START = 0
"""The gate version that stands for none: uniform over the active clients."""

ObjectiveText = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Paraphrases = Annotated[tuple[ObjectiveText, ...], Field(max_length=32)]


class Objective(Documented):
    name: ObjectiveName
    text: str
    """What a run with this objective aligns to, in words; sent to the clients."""
    paraphrases: tuple[str, ...] = ()
    """The same in other words: a text that a run asks for is compared with each of them too."""
    created_at: float
    """Unix time, seconds."""
    anchors: int = 0
    """Pairs of its anchor set."""
    active: int = COLD_START
    """Gate version in force; 0: none, uniform over the active clients."""
    history: tuple[int, ...] = ()
    """Gate versions that were in force before, the latest last."""


class NewObjective(Documented):
    """``POST /v1/objectives``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "helpful", "text": "Answer correctly, with what was asked for."}]}
    )

    name: ObjectiveName
    text: ObjectiveText
    """What a run with this objective aligns to. Clients see it."""
    paraphrases: Paraphrases = ()
    """The same in other words; a text that a run asks for is compared with each of them too."""


class ObjectiveChange(Documented):
    """``PATCH /v1/objectives/{name}``."""

    paraphrases: Paraphrases
    """Replace the ones there are."""


class FitRequest(Documented):
    """``POST /v1/objectives/{name}/fit``."""

    activate: bool = True
    """Whether the new gate version is put in force."""
    newcomers_only: bool = False
    """Whether the clients of the version in force stay as they are and only those are fitted that are not in it."""


class RefitRequest(Documented):
    """``POST /v1/objectives/{name}/refit``."""

    activate: bool = True
    """Whether the new gate version is put in force."""
