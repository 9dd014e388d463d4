"""What an arm sees: groups of responses as every client scored them, and the anchors' labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

Rewards = Float[ndarray, "groups size"]


@dataclass(frozen=True)
class Groups:
    """Responses to one input each. Group, client and response have the same place in every array."""

    inputs: Float[ndarray, "groups features"]
    """e(x): the router's frozen embedding of question and picture."""
    scores: Float[ndarray, "groups clients size"]
    """In each client's own calibrated logits, as its service would send them."""
    skills: tuple[str, ...]
    """``domain/task`` of each group, known because questions are made by programs. Only the oracle reads it."""
    others: Mapping[str, Rewards] = field(default_factory=dict)
    """Scores by reward models that no client serves: averaged, central, trained on anchors."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(skill.partition("/")[0] for skill in self.skills)

    def take(self, groups: Int[ndarray, " some"] | Bool[ndarray, " groups"]) -> Groups:
        """Some of the groups."""
        return Groups(
            self.inputs[groups],
            self.scores[groups],
            tuple(np.array(self.skills)[groups].tolist()),
            {name: scores[groups] for name, scores in self.others.items()},
        )

    def said(self, scores: Float[ndarray, "groups clients size"]) -> Groups:
        """The same groups with other scores by the clients."""
        return replace(self, scores=scores)


@dataclass(frozen=True)
class Anchors:
    """The server's own labelled pairs: the first response of each group is the preferred one."""

    pairs: Groups

    @property
    def right(self) -> Float[ndarray, "pairs clients"]:
        """1 where a client ranks a pair as labelled, ½ where it cannot tell."""
        return agreement(self.pairs.scores)


def agreement(scores: Float[ndarray, "*batch 2"]) -> Float[ndarray, "*batch"]:
    """1 where the first of two is scored higher, 0 where the second is, ½ for a tie."""
    return np.asarray((np.sign(scores[..., 0] - scores[..., 1]) + 1) / 2)
