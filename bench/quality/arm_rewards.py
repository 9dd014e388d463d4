"""Worker that replaces the router by an arm: reads sampled groups and writes rewards, over the product's streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from mor_core.blobs import Blobs
from mor_core.settings import StreamSettings
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Streams, connect
from mor_core.wire import ClientScore, RewardRecord, RolloutRecord, image_hashes
from mor_reward.backbones import Backbone, Example, Picture
from mor_router.embedding import GateInput, build_embedder
from pydantic import SecretStr

from quality.arms.arm import Score
from quality.group_scores import GroupScores, Rewards
from quality.scoring import open_model, scores

_GROUPS = 16
"""Most groups that are rewarded together: one step."""
_BLOCK_S = 1.0
"""Longest wait for groups in one read, seconds."""
_SEND_S = 30.0
"""Longest wait for room in the stream of rewards, seconds."""
_LEASE_S = 120.0
"""Lease on the groups in work, seconds: longer than the reward models take for a batch."""
_EMBEDDINGS = 10_000
"""Embeddings that are kept in memory."""


class ArmRewards:
    """Stream worker that rewards groups by an arm."""

    def __init__(self, redis_url: str, run: str, title: str, models: Sequence[Path], score: Score) -> None:
        """``models``: the clients' reward models, in the order of the clients in ``score``."""
        settings = StreamSettings(redis_url=SecretStr(redis_url), lease_s=_LEASE_S)
        self._redis = connect(settings)
        self._blobs = Blobs(self._redis, run)
        streams = Streams(self._redis, run, settings.stream_bound)
        self._consumer: Consumer[RolloutRecord] = Consumer(streams, "rollouts", "router", _LEASE_S)
        features: dict[str, Backbone] = {}
        self._models = [(model.name, open_model(model, features)) for model in models]
        self._embedder = build_embedder(None, None, _EMBEDDINGS)
        self._title = title
        self._score = score

    async def __aenter__(self) -> ArmRewards:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._redis.aclose()

    async def serve(self) -> None:
        """Reward groups until cancelled."""
        while True:
            entries = await self._consumer.read(_GROUPS, _BLOCK_S)
            if entries:
                for entry, rewards in zip(entries, await self._rewards(entries), strict=True):
                    record = self._record(entry.record, tuple(rewards.tolist()))
                    await self._consumer.forward(entry, "rewards", record, timeout_s=_SEND_S)

    async def _rewards(self, entries: Sequence[Entry[RolloutRecord]]) -> Rewards:
        inputs, examples = [], []
        for record in (entry.record for entry in entries):
            messages = record.prompt.messages
            images = {digest: await self._blobs.get(digest) for digest in image_hashes(messages)}
            pictures = tuple(Picture(digest, content) for digest, content in images.items())
            inputs.append(GateInput(messages, images))
            examples.append([Example(messages, pictures, response) for response in record.responses])
        client_scores = [scores(model, examples, name) for name, model in self._models]
        batch = GroupScores(
            await self._embedder.inputs(inputs), np.stack(client_scores, axis=1), skills=("",) * len(entries)
        )
        return self._score(batch)

    def _record(self, rollout: RolloutRecord, rewards: tuple[float, ...]) -> RewardRecord:
        client = ClientScore(
            client=self._title,
            status="ok",
            raw=rewards,
            standardised=rewards,
            calibrated=rewards,
            weight=1,
            gate_weight=1,
        )
        return RewardRecord(
            run=rollout.run,
            group_id=rollout.group_id,
            stamps=rollout.stamped("router"),
            rollout=rollout,
            rewards=rewards,
            clients=(client,),
            gate_version=0,
            fusion=self._title,
            entropy=0.0,
        )
