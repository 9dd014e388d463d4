"""Types of the router's API about audits: live groups that are labelled to check the clients that scored them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mor_core.stored_objectives import AuditedBy
from mor_core.wire import Documented, Messages, Sha256

Preferred = Literal["first", "second", "tie", "skip"]


class AuditCounts(Documented):
    """Audits of one objective."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "objective": "helpful",
                    "share": 0.02,
                    "labelled_by": "people",
                    "waiting": 12,
                    "oldest": 1767225600.0,
                    "labelled": 30,
                    "closed": {"labelled": 30, "skipped": 2},
                }
            ]
        }
    )

    objective: str
    share: float
    """Share of the live groups that are audited."""
    labelled_by: AuditedBy
    """Source of the labels: the objective's labeller, or people."""
    waiting: int
    """Audited groups and proposed pairs without a label."""
    oldest: float | None
    """Unix time, in seconds, at which the oldest of them was chosen."""
    labelled: int
    """Labelled groups that count now: drawn ones for the clients and in fits, proposed pairs in fits alone."""
    closed: dict[str, int] = Field(default_factory=dict)
    """Outcome -> number of all groups that are no longer waiting: ``labelled``, ``undecided`` (no response is better),
    ``skipped`` by a person, ``dropped`` (the queue was full), ``given_up`` (the labeller failed again and again); and
    of labels that no longer count: ``disputed`` by a second person, ``withdrawn`` by an admin."""


class AuditQuestion(Documented):
    """Audited group as a person sees it: two responses in random order, nothing about clients, scores or rewards."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "audit": "019b0c1d2e3f-5-7Qm2r9XkT1c",
                    "objective": "helpful",
                    "goal": "Answer correctly, with what was asked for.",
                    "messages": [{"role": "user", "content": "How many bars are there?"}],
                    "images": {},
                    "first": "Four.",
                    "second": "It is a chart.",
                    "waiting": 12,
                    "labelled": 30,
                }
            ]
        }
    )

    audit: str
    """Identifier, for the label."""
    objective: str
    goal: str
    """Text of the objective: what makes a response better."""
    messages: Messages
    images: dict[Sha256, str]
    """Pictures that the messages name, base64 by hash."""
    first: str
    second: str
    waiting: int
    """Audited groups of this objective without a label, this one included."""
    labelled: int
    """Groups that people and labellers have labelled for this objective so far."""


class AuditLabel(Documented):
    """Body of ``POST /v1/objectives/{name}/audits/{audit}``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"preferred": "second"}]})

    preferred: Preferred
    """Response that serves the objective better; ``tie``: neither does; ``skip``: this person cannot say."""


class ObjectiveAudits(Documented):
    """Agreement of a client with the labelled audits of one objective."""

    objective: str
    audits: int
    """Labelled groups that the client scored with its present model, counted by the ten: which groups they are is not
    shown."""
    agreement: float | None
    """Share of them in which it gave the better response the higher score; an equal score counts one half."""
    agreement_interval: tuple[float, float] | None
    """95 % interval of the agreement."""


class ClientAudits(Documented):
    """Agreement of a client with labelled audits, by objective."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "client": "st-mary",
                    "objectives": [
                        {
                            "objective": "helpful",
                            "audits": 30,
                            "agreement": 0.87,
                            "agreement_interval": [0.71, 0.95],
                        }
                    ],
                }
            ]
        }
    )

    client: str
    objectives: tuple[ObjectiveAudits, ...]


class PersonLabels(Documented):
    """Labels of one person, over all objectives."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "person": "ann",
                    "labels": 120,
                    "undecided": 14,
                    "skipped": 3,
                    "compared": 22,
                    "disagreed": 2,
                    "disagreement_interval": [0.025, 0.278],
                }
            ]
        }
    )

    person: str
    """Name of the token."""
    labels: int
    """Labels that count now."""
    undecided: int
    """Groups in which the person found neither response better."""
    skipped: int
    compared: int
    """Groups that another person has labelled as well."""
    disagreed: int
    """Those of them in which the two answered differently."""
    disagreement_interval: tuple[float, float] | None
    """95 % interval of the share of different answers; null: none was compared."""


class WithdrawnLabels(Documented):
    """Answer of ``DELETE /v1/audits/labels``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"person": "ann", "withdrawn": {"helpful": 120}}]})

    person: str
    withdrawn: dict[str, int]
    """Objective -> number of labels that count no longer."""
