"""Privacy statements of a client's card: training, audit and answers. All are claims, signed by nobody."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mor_core.wire.base import Finite, Wire

PrivacyUnit = Literal["pair", "picture", "person"]
"""Whose presence differential privacy hides: one preference pair, all pairs of one picture, or all pairs of one
person."""
Distillation = Literal["allowed", "forbidden"]
"""Permission of a router to train a model of its own on a client's scores."""

_Name = Annotated[str, StringConstraints(max_length=200)]
_Share = Annotated[Finite, Field(ge=0, le=1)]
_Positive = Annotated[Finite, Field(gt=0)]


class Privacy(Wire):
    """Differential privacy of a model's training: a claim, since no router can verify it."""

    epsilon: Annotated[Finite, Field(ge=0)]
    delta: _Share
    unit: PrivacyUnit | None = None
    """Whose presence is hidden; null where the client does not say."""
    mechanism: _Name | None = None
    """Method of training, such as ``DP-SGD`` or ``objective perturbation``."""
    accountant: _Name | None = None
    """Method that computed ε, with the library and its version."""
    public: Annotated[str, StringConstraints(max_length=2000)] | None = None
    """Parts and data that the guarantee does not cover because they are public, such as a pre-trained encoder."""


class MembershipAttack(Wire):
    """Success of the best membership inference against a model: was this unit part of the training data?"""

    attack: _Name
    unit: PrivacyUnit
    auc: _Share
    """Area under the ROC curve; 0.5 is guessing."""
    auc_interval: tuple[_Share, _Share]
    """95 % interval of ``auc``."""
    true_positives: _Share
    """Share of members recognised where 1 % of non-members are called members."""
    members: Annotated[int, Field(ge=0)]
    non_members: Annotated[int, Field(ge=0)]


class PrivacyAudit(Wire):
    """Owner's audit of its own model: bounds of what its scores reveal about the training data."""

    date: datetime.date
    model_version: _Name
    """Version of the audited model; an audit of another version says nothing about this one."""
    attacks: Annotated[tuple[MembershipAttack, ...], Field(min_length=1, max_length=8)]
    """Best attack per unit."""
    epsilon_lower: Annotated[Finite, Field(ge=0)] | None = None
    """Largest ε that the attacks rule out with 95 % confidence, a lower bound of the leak; null where not computed."""


class AnswerLimits(Wire):
    """Limits of what a client's answers reveal, which its service applies to every score."""

    bits: Annotated[int, Field(ge=1, le=24)] | None = None
    """Bits of a rounded score; null: unrounded."""
    range: _Positive | None = None
    """Largest magnitude of a rounded or noisy score, logits; null: none."""
    ranks: bool = False
    """True where a group gets ranks rather than scores."""
    centred: bool = False
    """True where each group's scores have mean 0."""
    noise: _Positive | None = None
    """Standard deviation of the noise on each score, logits; null: none."""
    queries_per_day: Annotated[int, Field(ge=1)] | None = None
    """Most groups that one router may ask in a day; null: unlimited."""
    epsilon_per_day: _Positive | None = None
    """Budget ε of one router's answers in a day under ``noise``; null: none."""
    delta: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    """δ of ``epsilon_per_day``."""
    sensitivity: _Positive | None = None
    """Largest change of one score by one unit of the training data, logits, on which ``epsilon_per_day`` rests."""
    answers_per_picture: Annotated[int, Field(ge=1)] | None = None
    """Most different answers about one picture, or one question without pictures, that are scored in a day; null:
    unlimited."""
