"""Input of an arm: scores of groups of responses by every client, and labelled anchor pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

Rewards = Float[ndarray, "groups size"]


@dataclass(frozen=True)
class ResponseFeatures:
    """Features of the responses, for variants of MoR that see them."""

    embeddings: Float[ndarray, "groups size features"]
    words: Int[ndarray, "groups size"]
    """Number of words."""


@dataclass(frozen=True)
class GroupScores:
    """Scores of groups of responses. Group, client and response have the same index in every array."""

    inputs: Float[ndarray, "groups features"]
    """Frozen embedding e(x) of question and picture by the router."""
    scores: Float[ndarray, "groups clients size"]
    """Scores in each client's own calibrated logits, as its service sends them."""
    skills: tuple[str, ...]
    """``domain/task`` of each group, known because programs generate the questions. Only the oracle uses it."""
    others: Mapping[str, Rewards] = field(default_factory=dict)
    """Scores by reward models that no client serves: averaged, central, trained on anchors."""
    answers: ResponseFeatures | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(skill.partition("/")[0] for skill in self.skills)

    def take(self, groups: Int[ndarray, " some"] | Bool[ndarray, " groups"]) -> GroupScores:
        """Select some of the groups."""
        answers = self.answers
        return GroupScores(
            self.inputs[groups],
            self.scores[groups],
            tuple(np.array(self.skills)[groups].tolist()),
            {name: scores[groups] for name, scores in self.others.items()},
            answers and ResponseFeatures(answers.embeddings[groups], answers.words[groups]),
        )

    def with_scores(self, scores: Float[ndarray, "groups clients size"]) -> GroupScores:
        """Copy the groups with other scores of the clients."""
        return replace(self, scores=scores)


@dataclass(frozen=True)
class AnchorPairs:
    """Labelled pairs of the server: the first response of each group is the preferred one."""

    pairs: GroupScores

    @property
    def right(self) -> Float[ndarray, "pairs clients"]:
        """1 where a client ranks a pair as labelled, ½ for a tie, otherwise 0."""
        return agreement(self.pairs.scores)


def agreement(scores: Float[ndarray, "*batch 2"]) -> Float[ndarray, "*batch"]:
    """Return 1 where the first of two has the higher score, 0 where the second has it, ½ for a tie."""
    return np.asarray((np.sign(scores[..., 0] - scores[..., 1]) + 1) / 2)
