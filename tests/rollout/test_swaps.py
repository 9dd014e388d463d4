"""After a swap the engine samples with all of the new weights and nothing of the old."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from mor_rollout.engines.protocol import Engine, SampleParams, SwapFailed
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.download import WeightsError
from mor_rollout.weights.pull import WeightsStore

from tests.rollout.publisher import Publisher
from tests.rollout.reference import Reference, base_tensors, moved, picture, prompt_input

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
AGREE = 1e-4
"""Largest difference of log-probabilities in float32 that rounding explains, nats."""
PARAMS = SampleParams(max_tokens=8, temperature=1.0, top_p=1.0)
PROMPT = prompt_input(picture(1))


async def distance(engine: Engine, reference: Reference) -> float:
    """Return the largest difference between the engine, with its caches as they are, and the reference."""
    prompt = await engine.encode(PROMPT)
    responses = await engine.sample(prompt, PARAMS, [1, 2, 3])
    return max(reference.distance(PROMPT, response) for response in responses)


@pytest.mark.parametrize(
    "only",
    ["", "vision_model", "connector", "text_model", "q_proj", "embed_tokens", "lm_head", "layernorm", "mlp.up_proj"],
)
async def test_every_part_of_the_model_follows_a_swap(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path, only: str
) -> None:
    """Warm caches before each swap: a stale prefix, a stale image or a stale head would show as nats of error."""
    reference.use({})
    assert await distance(engine, reference) < AGREE
    for version in (1, 2):
        tensors = moved(base_tensors(tiny_vlm), version, only)
        reference.use(tensors)
        assert await distance(engine, reference) > 1e-3, "the change must be visible"
        async with swapper.sampling("run", publisher.publish("run", version, tensors)) as loaded:
            assert loaded == version
            assert await distance(engine, reference) < AGREE
    assert swapper.read_back is not None
    assert (swapper.read_back.version, swapper.read_back.unverified) == (2, 0)


async def test_tensors_that_a_version_does_not_list_come_from_the_base(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    tensors = base_tensors(tiny_vlm)
    first = publisher.publish("run", 1, moved(tensors, 1, "layers.0"))
    only_head = moved(tensors, 2, "lm_head")
    second = publisher.publish("run", 2, only_head)
    async with swapper.sampling("run", first):
        pass
    async with swapper.sampling("run", second):
        reference.use(only_head)
        assert await distance(engine, reference) < AGREE


async def test_the_encoder_cache_survives_swaps_that_do_not_change_the_vision_tower(
    swapper: PolicySwapper,
    engine: Engine,
    publisher: Publisher,
    reference: Reference,
    tiny_vlm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resets = 0
    reset = engine._engine.reset_encoder_cache  # type: ignore[attr-defined]

    async def counted() -> None:
        nonlocal resets
        resets += 1
        await reset()

    monkeypatch.setattr(engine._engine, "reset_encoder_cache", counted)  # type: ignore[attr-defined]
    tensors = base_tensors(tiny_vlm)
    for version, only, expected in ((1, "text_model", 0), (2, "vision_model", 1), (3, "lm_head", 2), (4, "lm_head", 2)):
        changed = moved(tensors, version, only)
        async with swapper.sampling("run", publisher.publish("run", version, changed)):
            reference.use(changed)
            assert await distance(engine, reference) < AGREE
        assert resets == expected, f"version {version}"


async def test_a_version_that_waits_for_its_turn_is_loaded_though_others_took_its_place_on_disk(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    tensors = {version: moved(base_tensors(tiny_vlm), version) for version in range(1, 7)}
    held, late, *others = [publisher.publish("run" if n == 1 else f"run-{n}", n, tensors[n]) for n in tensors]
    waits = asyncio.Event()

    async def wait_for_turn() -> float:
        waits.set()
        async with swapper.sampling("run-2", late) as loaded:
            assert loaded == 2
            reference.use(tensors[2])
            return await distance(engine, reference)

    async with swapper.sampling("run", held):
        waiting = asyncio.create_task(wait_for_turn())
        await waits.wait()
        for ref in (late, *others):
            await swapper._store.pull(f"run-{ref.version}", ref)
    assert await waiting < AGREE


async def test_a_group_finishes_on_its_version_before_the_swap(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    tensors = {version: moved(base_tensors(tiny_vlm), version) for version in (1, 2)}
    refs = {version: publisher.publish("run", version, tensors[version]) for version in tensors}
    prompt = await engine.encode(PROMPT)
    order = []
    entered = asyncio.Event()

    async def group(version: int) -> None:
        async with swapper.sampling("run", refs[version]) as loaded:
            order.append(("in", loaded))
            entered.set()
            (response,) = await engine.sample(prompt, SampleParams(200, 1.0, 1.0), [version])
            reference.use(tensors[loaded])
            assert reference.distance(PROMPT, response) < AGREE
            order.append(("out", loaded))

    first = asyncio.create_task(group(1))
    await entered.wait()
    await asyncio.gather(first, group(2))
    await group(1)
    assert order == [("in", 1), ("out", 1), ("in", 2), ("out", 2), ("in", 2), ("out", 2)]
    assert swapper.times is not None
    assert swapper.times.drain_s > 0


async def test_an_interruptible_response_continues_under_the_newer_version(
    swapper: PolicySwapper,
    engine: Engine,
    publisher: Publisher,
    store: WeightsStore,
    reference: Reference,
    tiny_vlm: Path,
) -> None:
    """Each token's log-probability is the one under the version that its span names, given all tokens before it."""
    tensors = {version: moved(base_tensors(tiny_vlm), version) for version in (1, 2)}
    refs = {version: publisher.publish("run", version, tensors[version]) for version in tensors}
    await store.pull("run", refs[2])
    prompt = await engine.encode(PROMPT)
    long = SampleParams(180, 1.0, 1.0)

    async def swap() -> None:
        async with swapper.sampling("run", refs[2]) as version:
            assert version == 2

    async with swapper.sampling("run", refs[1], interruptible=True):
        group = asyncio.create_task(engine.sample(prompt, long, [1, 2, 3, 4]))
        swapping = None
        streamed = 0
        async for _ in engine.stream(prompt, long, 5):
            streamed += 1
            if streamed == 10:
                swapping = asyncio.create_task(swap())
        responses = await group
    assert swapping is not None
    await swapping
    assert {tuple(span.version for span in response.spans) for response in responses} & {(1, 2)}
    for response in responses:
        ends = [*(span.first for span in response.spans[1:]), len(response.token_ids)]
        for span, end in zip(response.spans, ends, strict=True):
            assert span.version is not None
            reference.use(tensors[span.version])
            expected = reference.logprobs(PROMPT, response)[span.first : end]
            assert (expected - torch.tensor(response.logprobs[span.first : end])).abs().max() < AGREE
    assert await distance(engine, reference) < AGREE, "nothing of the old version is left in a cache"


async def test_an_engine_that_does_not_pause_fails_after_the_time_limit(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [publisher.publish("run", version, moved(base_tensors(tiny_vlm), version)) for version in (1, 2)]

    async def never(**_: object) -> None:
        await asyncio.sleep(60)

    inner = engine._engine  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_failure", None)
    async with swapper.sampling("run", refs[0], interruptible=True):
        monkeypatch.setattr(inner, "pause_generation", never)
        quick = engine._settings.model_copy(update={"swap_timeout_s": 0.3})  # type: ignore[attr-defined]
        monkeypatch.setattr(engine, "_settings", quick)
        with pytest.raises(SwapFailed, match=r"pausing took over 0.3 s \(MOR_SWAP_TIMEOUT_S\)"):
            async with swapper.sampling("run", refs[1]):
                raise AssertionError("must not be sampled")
    assert swapper.failure == "pausing took over 0.3 s (MOR_SWAP_TIMEOUT_S)", "the service restarts"


async def test_two_runs_keep_their_own_weights(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    tensors = {run: moved(base_tensors(tiny_vlm), seed) for seed, run in enumerate(("a", "b"), 1)}
    refs = {"a": publisher.publish("a", 5, tensors["a"]), "b": publisher.publish("b", 2, tensors["b"])}
    older = publisher.publish("a", 4, moved(base_tensors(tiny_vlm), 9))
    for run, ref, expected in (("a", refs["a"], 5), ("b", refs["b"], 2), ("a", older, 5), ("b", refs["b"], 2)):
        async with swapper.sampling(run, ref) as version:
            assert (swapper.run, version) == (run, expected)
            reference.use(tensors[run])
            assert await distance(engine, reference) < AGREE


async def test_bad_weights_leave_the_old_ones_in_use(
    swapper: PolicySwapper, engine: Engine, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    good = moved(base_tensors(tiny_vlm), 1)
    async with swapper.sampling("run", publisher.publish("run", 1, good)):
        pass
    bad = publisher.publish("run", 2, moved(base_tensors(tiny_vlm), 2), base="elsewhere/model")
    with pytest.raises(WeightsError, match=r"published for base 'elsewhere/model'.*start a rollout service"):
        async with swapper.sampling("run", bad):
            raise AssertionError("must not be sampled")
    assert (swapper.version, swapper.failure) == (1, None)
    reference.use(good)
    assert await distance(engine, reference) < AGREE


async def test_an_incomplete_swap_is_undone(
    swapper: PolicySwapper,
    engine: Engine,
    publisher: Publisher,
    reference: Reference,
    tiny_vlm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker loses a layer. The read-back notices it, and the previous version is restored."""
    call = engine._call  # type: ignore[attr-defined]

    async def lossy(method: str, *arguments: object) -> object:
        if method == "mor_load":
            sources = [source for source in arguments[0] if ".layers.1." not in source[0]]  # type: ignore[attr-defined]
            return await call(method, sources, *arguments[1:])
        return await call(method, *arguments)

    first = moved(base_tensors(tiny_vlm), 1)
    async with swapper.sampling("run", publisher.publish("run", 1, first)):
        pass
    second = publisher.publish("run", 2, moved(base_tensors(tiny_vlm), 2, "layers.1"))
    monkeypatch.setattr(engine, "_call", lossy)
    with pytest.raises(SwapFailed, match="do not compute with the weights they were given"):
        async with swapper.sampling("run", second):
            raise AssertionError("must not be sampled")
    monkeypatch.undo()
    reference.use(first)
    assert swapper.version == 1
    assert await distance(engine, reference) < AGREE


async def test_weights_already_on_disk_are_not_pulled_again(
    store: WeightsStore, publisher: Publisher, tiny_vlm: Path
) -> None:
    ref = publisher.publish("run", 1, moved(base_tensors(tiny_vlm), 1))
    first, second = await asyncio.gather(store.pull("run", ref), store.pull("run", ref))
    again = await store.pull("run", ref)
    assert first.folder == second.folder == again.folder
    files = [path for path, _ in publisher.requests if path.endswith(".safetensors")]
    assert len(files) == 1
