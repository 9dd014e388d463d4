"""Rewards of sampled groups by the clients' reward models, and the bytes that they cost on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mor_core.datafiles import Prompt
from mor_core.wire import ItemScores, ModelRef, ScoreItem, ScoreRequest, ScoreResponse
from mor_reward.backbones import Backbone
from mor_reward.scoring_engine import ScoringEngine
from mor_router.embedding import GateInput, build_embedder

from quality.group_scores import GroupScores, Rewards
from quality.scoring import Group, open_model, scores

_EMBEDDINGS = 10_000
"""Embeddings that are kept in memory."""


class RewardPanel:
    """Reward models of the clients and of the server, opened when they are first needed."""

    def __init__(self, models: Path, clients: Sequence[str]) -> None:
        """``models``: folder of the models by name; ``clients``: those that score, in the order of their scores."""
        self.clients = tuple(clients)
        self._models = models
        self._features: dict[str, Backbone] = {}
        self._open: dict[str, ScoringEngine] = {}
        self._embedder = build_embedder(None, None, _EMBEDDINGS)

    def group_scores(self, groups: Sequence[Group], others: Sequence[str] = ()) -> GroupScores:
        """Score groups by all clients and by ``others``, models that no client serves."""
        inputs = [GateInput(group.prompt.messages, group.prompt.images) for group in groups]
        return GroupScores(
            asyncio.run(self._embedder.inputs(inputs)),
            np.stack([self.by(client, groups) for client in self.clients], axis=1),
            skills=("",) * len(groups),
            others={name: self.by(name, groups) for name in others},
        )

    def by(self, name: str, groups: Sequence[Group]) -> Rewards:
        """Score groups by one model."""
        if name not in self._open:
            self._open[name] = open_model(self._models / name, self._features)
        return scores(self._open[name], [group.examples for group in groups], name)


class ScoreBytes:
    """Bytes of ``mor.reward/1`` between the server and the clients; a client gets a picture once."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def of(self, client: str, groups: Sequence[Group]) -> tuple[int, int]:
        """Return the bytes to and from a client that scores the groups."""
        if not groups:
            return 0, 0
        to_client = sum(self._pictures(client, group.prompt) for group in groups)
        items, answers = [], []
        for number, group in enumerate(groups):
            responses = tuple(example.response for example in group.examples)
            name = f"group-{number}"
            items.append(ScoreItem(item_id=name, messages=group.prompt.messages, responses=responses, objective="gold"))
            answers.append(ItemScores(item_id=name, status="ok", scores=tuple(0.123456789 for _ in responses)))
        answer = ScoreResponse(model=ModelRef(name=client, version="0" * 16), items=tuple(answers))
        return to_client + len(ScoreRequest(items=tuple(items)).model_dump_json()), len(answer.model_dump_json())

    def _pictures(self, client: str, prompt: Prompt) -> int:
        new = [digest for digest in prompt.images if (client, digest) not in self._seen]
        self._seen.update((client, digest) for digest in new)
        return sum(4 * -(-len(prompt.images[digest]) // 3) for digest in new)
