"""The two other stages of the loop over real streams: a tiny model that samples, and scores by a rule.

They keep the services' part of the contract (same prompts, sampling distribution and records), not their robustness.
They run on a separate thread, as the services run in separate processes.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx
import torch
from mor_core import images as guarded
from mor_core.blobs import Blobs
from mor_core.errors import BlobMissing, MorError
from mor_core.pixel_hash import pixel_sha256
from mor_core.run_announcements import AnnouncedRuns
from mor_core.sampling import forbidden_token_ids, response_seed
from mor_core.settings import StreamSettings
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Streams, connect
from mor_core.vision import encode_prompt, load_processor
from mor_core.weight_checksums import WeightsChecksum
from mor_core.wire import (
    ClientScore,
    PromptRecord,
    RewardRecord,
    RolloutRecord,
    TokenBlock,
    WeightsManifest,
    image_hashes,
)
from pydantic import SecretStr
from redis.exceptions import RedisError
from safetensors.torch import load

_BLOCK_S = 0.03
"""Wait of each stage for groups, while the other one waits: shorter ones cost a tenth of a core."""
Rule = Callable[[tuple[int, ...], str], float]
"""Reward of a response, from its token ids and its text."""


def share_of_even_tokens(ids: tuple[int, ...], text: str) -> float:
    """Score a response: its share of tokens with an even id, plus a little so that any two responses differ."""
    del text
    return 4.0 * sum(token % 2 == 0 for token in ids) / len(ids) + sum(ids) % 1009 / 2000


class Sampler:
    """Sampler from a checkpoint with plain transformers, in the rollout service's way."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForImageTextToText

        self._take(AutoModelForImageTextToText.from_pretrained(model).eval(), load_processor(str(model)))

    @classmethod
    def of(cls, model: Any, processor: Any) -> Sampler:
        """Wrap a model that is already loaded."""
        sampler = cls.__new__(cls)
        sampler._take(model, processor)
        return sampler

    def _take(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.forbidden = torch.tensor(forbidden_token_ids(self.processor, self.model.lm_head.weight.shape[0]))
        self.version = -1
        self.seed_of = response_seed

    def load(self, manifest: WeightsManifest, files: dict[str, bytes]) -> None:
        tensors = load(files["model.safetensors"])
        assert tensors.keys() == manifest.tensors.keys()
        unexpected = self.model.load_state_dict(tensors, strict=False).unexpected_keys
        assert not unexpected
        self.version = manifest.version

    @torch.no_grad()
    def sample(self, record: PromptRecord, images: dict[str, bytes]) -> tuple[TokenBlock, list[str], str | None]:
        """Sample the responses of a group, up to the end-of-sequence token or ``max_tokens``."""
        how = record.sampling
        decoded = {digest: guarded.decode(content) for digest, content in images.items()}
        encoded = encode_prompt(self.processor, record.messages, decoded)
        pixels = pixel_sha256(encoded)
        prompt = encoded.pop("input_ids")
        encoded.pop("attention_mask")
        generators = [
            torch.Generator().manual_seed(self.seed_of(how.seed, record.run, record.group_id, index))
            for index in range(how.group_size)
        ]
        vision = {name: value.repeat(how.group_size, *[1] * (value.dim() - 1)) for name, value in encoded.items()}
        ids, cache = prompt.repeat(how.group_size, 1), None
        tokens: list[list[int]] = [[] for _ in generators]
        logprobs: list[list[float]] = [[] for _ in generators]
        end = self.processor.tokenizer.eos_token_id
        for _ in range(how.max_tokens):
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **vision)
            cache, vision = output.past_key_values, {}
            logits = output.logits[:, -1].index_fill(-1, self.forbidden, float("-inf"))
            if how.temperature == 0:
                distribution, chosen = logits.log_softmax(-1), logits.argmax(-1)
            else:
                distribution = (logits / how.temperature).log_softmax(-1)
                chosen = torch.cat(
                    [
                        torch.multinomial(row.exp(), 1, generator=g)
                        for row, g in zip(distribution, generators, strict=True)
                    ]
                )
            for row, token in enumerate(chosen.tolist()):
                if not tokens[row] or tokens[row][-1] != end:
                    tokens[row].append(token)
                    logprobs[row].append(distribution[row, token].item())
            if all(row[-1] == end for row in tokens):
                break
            ids = chosen[:, None]
        block = TokenBlock(
            prompt_token_ids=tuple(prompt[0].tolist()),
            response_token_ids=tuple(map(tuple, tokens)),
            response_logprobs=tuple(map(tuple, logprobs)),
        )
        return block, self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), pixels


class Stages:
    """Rollout and router of every announced run, on one thread."""

    def __init__(self, redis_url: str, model: Path, rule: Rule, token: str, control: Callable[[], str]) -> None:
        """``control``: address of run control, which may start later."""
        self._settings = StreamSettings(redis_url=SecretStr(redis_url), lease_s=5)
        self.sampler = Sampler(model)
        self._rule = rule
        self._token = token
        self._control = control
        self._stop = threading.Event()
        self._latest_scored = math.inf
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.sampled: Counter[str] = Counter()
        """Number of times that each group was sampled."""
        self.evaluated: Counter[str] = Counter()
        self.rewards: list[float] = []
        self.lose: Callable[[RolloutRecord], bool] = lambda record: False
        """Groups for which this is true disappear after sampling."""
        self.hold: Callable[[RolloutRecord], bool] = lambda record: False
        """Groups for which this is true stay in the router's stream until its lease on them ends."""
        self.fail: Callable[[RolloutRecord], bool] = lambda record: False
        """Groups for which this is true become dead letters."""
        self.absurd: Callable[[RolloutRecord], bool] = lambda record: False
        """Groups for which this is true get a reward that no mixture of scores reaches."""
        self.empty: Callable[[PromptRecord], bool] = lambda record: False
        """Groups for which this is true have a response without tokens."""
        self.flat: Callable[[RolloutRecord], bool] = lambda record: False
        """Groups for which this is true get one reward for all responses."""
        self.tamper: Callable[[RolloutRecord], RolloutRecord] = lambda record: record
        self.before_pull: Callable[[int], bool] = lambda version: False
        """Called with each version before it is loaded; where it is true, the version counts as damaged."""
        self.rescore: Callable[[RewardRecord], RewardRecord] = lambda record: record
        """Change of the router's record of a group."""
        self.beta: Literal["timeout", "shadow"] = "timeout"
        """Behaviour of the second client: it times out, or it is on probation."""
        self.lease_s = 5.0
        """Lease of the router on a group."""
        self.failure: BaseException | None = None

    def __enter__(self) -> Stages:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure from error

    async def _run(self) -> None:
        torch.set_num_threads(1)
        headers = {"Authorization": f"Bearer {self._token}"}
        async with aclosing(connect(self._settings)) as redis, httpx.AsyncClient(headers=headers, timeout=20) as http:
            while not self._stop.is_set():
                try:
                    for announcement in await AnnouncedRuns(redis).read():
                        streams = Streams(redis, announcement.run, self._settings.stream_bound)
                        blobs = Blobs(redis, announcement.run)
                        await self._rollout(streams, blobs, http)
                        await self._route(streams)
                    await asyncio.sleep(0.005)
                except (RedisError, MorError, OSError, httpx.HTTPError):
                    await asyncio.sleep(0.2)
                except BaseException as error:
                    self.failure = error
                    return

    async def _rollout(self, streams: Streams, blobs: Blobs, http: httpx.AsyncClient) -> None:
        consumer: Consumer[PromptRecord] = Consumer(streams, "prompts", "rollout", 5)
        for entry in await consumer.read(4, _BLOCK_S):
            record = entry.record
            version = record.weights.version
            if version > self.sampler.version and not await self._pull(record.run, version, http):
                await consumer.give_up(entry, f"engine stage: no version {version}", weights_version=version)
                continue
            try:
                images = {digest: await blobs.get(digest) for digest in image_hashes(record.messages)}
            except BlobMissing as error:
                await consumer.give_up(entry, str(error))
                continue
            block, texts, pixels = self.sampler.sample(record, images)
            end = self.sampler.processor.tokenizer.eos_token_id
            reasons = tuple("stop" if ids[-1] == end else "length" for ids in block.response_token_ids)
            if self.empty(record):
                block = block.model_copy(
                    update={
                        "response_token_ids": ((), *block.response_token_ids[1:]),
                        "response_logprobs": ((), *block.response_logprobs[1:]),
                    }
                )
            rollout = RolloutRecord(
                run=record.run,
                group_id=record.group_id,
                stamps=record.stamped("rollout"),
                prompt=record,
                responses=tuple(texts),
                finish_reasons=reasons,
                tokens=await blobs.put(block.model_dump_json().encode(), record.group_id),
                weights_version=self.sampler.version,
                image_tokens=0,
                pixels=pixels,
            )
            if record.purpose == "train":
                self.sampled[record.group_id] += 1
            else:
                self.evaluated[record.group_id] += 1
            await self._hand_on(consumer, entry, self.tamper(rollout), block)

    @contextmanager
    def halting_after(self, version: int) -> Iterator[None]:
        """Score no group of a later version meanwhile: no run is faster than the test that disturbs it."""
        self._latest_scored = version
        try:
            yield
        finally:
            self._latest_scored = math.inf

    async def _pull(self, run: str, version: int, http: httpx.AsyncClient) -> bool:
        """Load a version; return whether its published files are there and as the manifest lists them."""
        if self.before_pull(version):
            return False
        url = f"{self._control()}/v1/runs/{run}/weights/{version}"
        reply = await http.get(url)
        if reply.status_code == 404:
            return False
        manifest = WeightsManifest.model_validate_json(reply.raise_for_status().content)
        files: dict[str, bytes] = {}
        for file in manifest.files:
            reply = await http.get(f"{url}/{file.name}")
            if reply.status_code == 404:
                return False
            found = WeightsChecksum(file.name, file.algorithm)
            found.update(reply.raise_for_status().content)
            if found.hexdigest() != file.checksum:
                return False
            files[file.name] = reply.content
        self.sampler.load(manifest, files)
        return True

    async def _hand_on(
        self, consumer: Consumer[PromptRecord], entry: Entry[PromptRecord], rollout: RolloutRecord, block: TokenBlock
    ) -> None:
        if self.lose(rollout):
            await consumer.settle(entry)
        elif self.fail(rollout):
            await consumer.give_up(entry, "the sampler broke down", attempts=1)
        else:
            self._last_block = block
            await consumer.forward(entry, "rollouts", rollout, timeout_s=5)

    async def _route(self, streams: Streams) -> None:
        consumer: Consumer[RolloutRecord] = Consumer(streams, "rollouts", "router", self.lease_s)
        blobs = Blobs(streams.redis, streams.run)
        for entry in await consumer.read(8, _BLOCK_S):
            rollout = entry.record
            # A thread sets the version, so that there is no event to wait for.
            while rollout.weights_version > self._latest_scored and not self._stop.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if self.hold(rollout):
                continue
            try:
                block = TokenBlock.model_validate_json(await blobs.get(rollout.tokens))
            except BlobMissing as error:
                await consumer.give_up(entry, str(error))
                continue
            scores = tuple(
                self._rule(ids, text) if ids else 0.0
                for ids, text in zip(block.response_token_ids, rollout.responses, strict=True)
            )
            if self.flat(rollout):
                scores = (1.0,) * len(scores)
            if rollout.prompt.purpose == "train":
                self.rewards.append(sum(scores) / len(scores))
            rewarded = reward_record(rollout, scores, self.beta)
            if self.absurd(rollout):
                rewarded = rewarded.model_copy(update={"rewards": (*scores[1:], -1e13)})
            await consumer.forward(entry, "rewards", self.rescore(rewarded), timeout_s=5)


def reward_record(
    rollout: RolloutRecord, scores: tuple[float, ...], beta: Literal["timeout", "shadow"] = "timeout"
) -> RewardRecord:
    """Return a router's record of a group with two clients: one scores, one times out or is on probation."""
    return RewardRecord(
        run=rollout.run,
        group_id=rollout.group_id,
        stamps=rollout.stamped("router"),
        rollout=rollout,
        rewards=scores,
        clients=(
            ClientScore(
                client="alpha", status="ok", raw=scores, standardised=scores, calibrated=scores, weight=1.0,
                gate_weight=0.75, seconds=0.01,
            ),
            ClientScore(client="beta", status=beta, detail="no answer within 2 s", gate_weight=0.25),
        ),
        gate_version=3,
        fusion="weighted",
        entropy=0.0,
    )  # fmt: skip


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition; fail with ``what`` when it does not hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
