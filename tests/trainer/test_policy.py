"""The policy on real tiny models: log-probabilities, gradients, reference, weights and checkpoints."""

from __future__ import annotations

import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.algorithms import Algorithm, Kl
from mor_core.datafiles import Prompt, read_prompts
from mor_core.errors import Invalid
from mor_core.runs import LoraTuning, RunSpec
from mor_core.sampling import forbidden_token_ids
from mor_core.wire import TokenBlock
from mor_trainer import atomic, checkpoint, loading, weights
from mor_trainer.encoding import PromptMismatch, check
from mor_trainer.features import ByteBoundCache
from mor_trainer.ledger import Ledger
from mor_trainer.policy import Policy
from mor_trainer.rows import PreparedPrompt, Row
from mor_trainer.shares import TimeShares
from mor_trainer.update import TrainingGroup, Updater
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec
from tests.trainer.stages import Sampler

KINDS = ("idefics3", "smolvlm", "qwen2_5_vl", "llava")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_tiny_vlm(tmp_path_factory.mktemp(kind), kind=kind, scale=2.0) for kind in KINDS}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows_of(prompts: Path) -> list[Prompt]:
    return read_prompts(prompts)


def policy_of(model: Path, prompts: Path, dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Policy, RunSpec]:
    spec = make_spec(model, prompts, **changes)
    torch.manual_seed(0)
    loaded, processor = loading.load(str(model), dtype)
    return Policy(loaded, processor, spec), spec


def groups_of(policy: Policy, prompts: list[Prompt], size: int = 4, seed: int = 0) -> list[TrainingGroup]:
    """Groups with random responses of one to nine tokens and engine log-probabilities near the policy's."""
    dice = random.Random(seed)
    groups = []
    for prompt in prompts:
        prepared = policy.prepare(prompt.messages, prompt.images)
        responses = tuple(tuple(dice.randrange(20, 300) for _ in range(dice.randint(1, 9))) for _ in range(size))
        with torch.no_grad():
            flat = policy.logprobs([Row(prepared, responses)])[0].tolist() if policy.shares_prompts else None
            flat = flat or [x for r in responses for x in policy.logprobs([Row(prepared, (r,))])[0].tolist()]
        engine = iter(value + dice.gauss(0, 0.3) for value in flat)
        logprobs = tuple(tuple(next(engine) for _ in response) for response in responses)
        groups.append(TrainingGroup(prepared, responses, logprobs, tuple(dice.gauss(0, 1) for _ in responses)))
    return groups


def plain_logprobs(model: Any, processor: Any, prompt: Prompt, response: tuple[int, ...]) -> torch.Tensor:
    """One response, one full forward with pixel values, all logits: nothing of the policy's code."""
    from mor_core.vision import encode_prompt

    images = {digest: Image.open(io.BytesIO(content)).convert("RGB") for digest, content in prompt.images.items()}
    encoded = encode_prompt(processor, prompt.messages, images)
    ids = torch.cat([encoded["input_ids"], torch.tensor([response])], 1)
    rest = {k: v for k, v in encoded.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    if "mm_token_type_ids" in encoded:
        zeros = torch.zeros(1, len(response), dtype=torch.long)
        rest["mm_token_type_ids"] = torch.cat([encoded["mm_token_type_ids"], zeros], 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **rest).logits[0]
    logits[:, list(forbidden_token_ids(processor, logits.shape[-1]))] = float("-inf")
    start = encoded["input_ids"].shape[1] - 1
    return logits[start:-1].log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_equal_a_plain_forward(
    models: dict[str, Path], kind: str, prompts: Path, rows_of: list[Prompt]
) -> None:
    policy, _ = policy_of(models[kind], prompts)
    assert policy.shares_prompts == (kind != "qwen2_5_vl")
    responses = ((30, 41, 52, 63, 74), (99,), (120, 33))
    rows = [Row(policy.prepare(prompt.messages, prompt.images), responses) for prompt in rows_of[:2]]
    if not policy.shares_prompts:
        rows = [Row(row.prompt, (response,)) for row in rows for response in row.responses]
    with torch.no_grad():
        got = policy.logprobs(rows)[0]
        wanted = torch.cat(
            [plain_logprobs(policy.model, policy.processor, p, r) for p in rows_of[:2] for r in responses]
        )
    assert torch.allclose(got, wanted, atol=1e-5), (got - wanted).abs().max()


def test_engine_and_trainer_agree_on_sampled_tokens(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    from mor_core.wire import PromptRecord, Sampling, WeightsRef

    policy, _ = policy_of(tiny, prompts, torch.float32)
    prompt = rows_of[0]
    record = PromptRecord(
        run="r", group_id="g", prompt_id="p", messages=prompt.messages,
        sampling=Sampling(group_size=4, max_tokens=8), weights=WeightsRef(version=0, url="http://x"),
    )  # fmt: skip
    block, _, pixels = Sampler(tiny).sample(record, prompt.images)
    prepared = policy.prepare(prompt.messages, prompt.images)
    assert prepared.encoded.pixels == pixels
    assert prepared.encoded.token_ids == block.prompt_token_ids
    with torch.no_grad():
        ours = policy.logprobs([Row(prepared, block.response_token_ids)])[0]
    theirs = torch.tensor([value for row in block.response_logprobs for value in row])
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_the_parameter_gradient_equals_a_plain_implementations(
    models: dict[str, Path], kind: str, prompts: Path, rows_of: list[Prompt]
) -> None:
    """Micro-batches, shared prompts, cached features, reference and clip against loops over whole forwards."""
    from tests.trainer.test_maths import plain_grpo

    algorithm = Algorithm(kl=Kl(beta=0.3))
    policy, spec = policy_of(
        models[kind],
        prompts,
        algorithm=algorithm.model_dump(),
        optimiser={"lr": 1e-3, "grad_clip": 1e9, "warmup_steps": 0},
    )
    groups = groups_of(policy, rows_of[:3])
    with torch.no_grad():  # step away from the reference
        for index, parameter in enumerate(policy.trainable.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.01)
    captured: dict[str, torch.Tensor] = {}
    updater = Updater(policy, spec)
    updater.optimiser.register_step_pre_hook(
        lambda *_: captured.update({n: p.grad.clone() for n, p in policy.trainable.items() if p.grad is not None})
    )
    trained = {name: parameter.detach().clone() for name, parameter in policy.trainable.items()}
    updater.step(groups, 1, TimeShares())

    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            parameter.copy_(trained[name])
    base = AutoModelForImageTextToText.from_pretrained(models[kind], dtype=torch.float64).eval()
    flat = [(prompt, r) for prompt, group in zip(rows_of, groups, strict=False) for r in group.responses]
    ours = torch.cat([plain_logprobs(policy.model, policy.processor, p, r) for p, r in flat])
    with torch.no_grad():
        reference = torch.cat([plain_logprobs(base, policy.processor, p, r) for p, r in flat])
    engine = torch.tensor([v for g in groups for row in g.engine_logprobs for v in row], dtype=torch.float64)
    loss = plain_grpo(ours, engine, reference, [g.rewards for g in groups], [len(r) for _, r in flat], algorithm, 6)
    policy.model.zero_grad()
    loss.backward()
    difference = sum((captured[n] - p.grad).square().sum() for n, p in policy.trainable.items() if p.grad is not None)
    size = sum(p.grad.square().sum() for p in policy.trainable.values() if p.grad is not None)
    assert (difference / size).sqrt() < 1e-5


def test_the_same_batch_twice_gives_the_same_bits(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    ends = []
    for _ in range(2):
        policy, spec = policy_of(tiny, prompts, torch.float32, optimiser={"lr": 1e-3, "updates_per_step": 2})
        updater = Updater(policy, spec)
        for step in (1, 2):
            updater.step(groups_of(policy, rows_of[:4], seed=step), step, TimeShares())
        ends.append({name: p.detach().clone() for name, p in policy.trainable.items()})
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_an_indifferent_group_hardly_moves_the_policy(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    norms = []
    for spread in (1.0, 1e-4):
        policy, spec = policy_of(tiny, prompts, algorithm={"kl": {"beta": 0.0}})
        assert not policy.has_reference
        groups = [
            TrainingGroup(g.prompt, g.responses, g.engine_logprobs, tuple(1.0 + spread * r for r in g.rewards))
            for g in groups_of(policy, rows_of[:2])
        ]
        norms.append(Updater(policy, spec).step(groups, 1, TimeShares()).grad_norm)
    assert norms[1] < 0.003 * norms[0]


def test_a_non_finite_gradient_is_left_out_and_counted(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(tiny, prompts)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    groups = groups_of(policy, rows_of[:2])
    broken = TrainingGroup(
        groups[0].prompt, groups[0].responses, groups[0].engine_logprobs, (1e308, -1e308, 1e308, 0.0)
    )
    report = Updater(policy, spec).step([broken, groups[1]], 1, TimeShares())
    assert report.skipped == 1
    assert all(parameter.equal(before[name]) for name, parameter in policy.trainable.items())


def test_shuffled_rewards_are_a_permutation_and_differ_by_step(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    policy, spec = policy_of(tiny, prompts, control_rewards="shuffled", algorithm={"advantage": {"kind": "mean_only"}})
    groups = [
        TrainingGroup(g.prompt, g.responses, g.engine_logprobs, (10.0 * i, 10.0 * i + 1, 10.0 * i + 2, 10.0 * i + 3))
        for i, g in enumerate(groups_of(policy, rows_of[:3]))
    ]
    updater = Updater(policy, spec)
    first, second = (updater.step(groups, step, TimeShares()).advantages for step in (1, 2))
    assert first != second
    assert max(abs(a) for row in first for a in row) > 3, "rewards crossed over groups"


def test_the_frozen_reference_shares_what_is_not_trained(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(tiny, prompts)
    reference = policy._reference
    ours = dict(policy.model.named_parameters())
    for name, parameter in reference.named_parameters():
        assert (parameter is ours[name]) == (name not in policy.trainable), name
        assert not parameter.requires_grad
    groups = groups_of(policy, rows_of[:2])
    rows = [Row(group.prompt, group.responses) for group in groups]
    before = policy.reference_logprobs(rows)
    Updater(policy, spec).step(groups, 1, TimeShares())
    assert policy.reference_logprobs(rows).equal(before)
    with torch.no_grad():
        assert not policy.logprobs(rows)[0].equal(before)


def test_lora_trains_adapters_and_its_reference_is_the_adapter_off(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path
) -> None:
    from peft import PeftModel

    policy, spec = policy_of(tiny, prompts, torch.float32, tuning=LoraTuning(rank=4).model_dump())
    assert policy._reference is None
    assert all("lora_" in name and "text_model" in name for name in policy.trainable)
    groups = groups_of(policy, rows_of[:2])
    rows = [Row(group.prompt, group.responses) for group in groups]
    before = policy.reference_logprobs(rows)
    Updater(policy, spec).step(groups, 1, TimeShares())
    assert policy.reference_logprobs(rows).equal(before)
    manifest = weights.publish(
        tmp_path, "r", 1, str(tiny), model=policy.model, adapter=policy.adapter, trainable=policy.trainable, keep=2
    )
    assert manifest.kind == "lora"
    folder = tmp_path / "weights" / "1"
    assert {file.name for file in manifest.files} == {"adapter_model.safetensors", "adapter_config.json"}
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny), folder)
    other = Policy(loaded.merge_and_unload(), policy.processor, make_spec(tiny, prompts))
    with torch.no_grad():
        assert torch.allclose(other.logprobs(rows)[0], policy.logprobs(rows)[0], atol=1e-4)


def test_lora_targets_that_name_nothing_are_refused(tiny: Path, prompts: Path) -> None:
    with pytest.raises(Invalid, match=r"tuning.targets \['nonsense'\] name no linear layer of the language model"):
        policy_of(tiny, prompts, tuning=LoraTuning(targets=("nonsense",)).model_dump())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_published_tensors_have_the_names_of_save_pretrained(
    kind: str, tied: bool, prompts: Path, tmp_path: Path
) -> None:
    model = build_tiny_vlm(tmp_path / "base", tied=tied, kind=kind)  # type: ignore[arg-type]
    policy, _ = policy_of(model, prompts, torch.float32)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(0.5)
    manifest = weights.publish(
        tmp_path, "r", 0, str(model), model=policy.model, adapter=None, trainable=policy.trainable, keep=2
    )
    published = load_file(tmp_path / "weights" / "0" / "model.safetensors")
    base = load_file(model / "model.safetensors")
    assert published.keys() == manifest.tensors.keys()
    assert published.keys() <= base.keys()
    frozen = base.keys() - published.keys()
    assert frozen
    assert all("vis" in name or "connector" in name or "projector" in name for name in frozen), frozen
    assert all(torch.allclose(tensor, base[name] + 0.5) for name, tensor in published.items())
    policy.model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(tensor.equal(saved[name]) for name, tensor in published.items())


def test_publication_is_fast_checked_and_pruned(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    import hashlib

    policy, _ = policy_of(tiny, prompts, torch.float32)
    fifteen_million = {f"layer.{i}.weight": torch.randn(1000, 1500) for i in range(10)}
    for version in range(4):
        begun = time.perf_counter()
        manifest = weights.publish(
            tmp_path, "r", version, str(tiny), model=policy.model, adapter=None, trainable=fifteen_million, keep=2
        )
        seconds = time.perf_counter() - begun
    assert seconds < 1.0  # 0.1 s on an idle machine
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["2", "3"]
    file = manifest.files[0]
    content = (tmp_path / "weights" / "3" / file.name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    name, info = next(iter(manifest.tensors.items()))
    assert hashlib.sha256(fifteen_million[name].numpy().tobytes()).hexdigest() == info.sha256


def test_a_checkpoint_restores_the_whole_loop(tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path) -> None:
    straight, spec = policy_of(tiny, prompts, torch.float32)
    updater = Updater(straight, spec)
    batches = [groups_of(straight, rows_of[:4], seed=step) for step in range(4)]
    for step in range(4):
        updater.step(batches[step], step + 1, TimeShares())
        if step == 1:
            state = checkpoint.LoopState(
                step=2, weights_version=2, gate_version=None, ledger=Ledger("r", 12, 0, 0, 3).state(),
                client_failures={}, spec=spec,
            )  # fmt: skip
            path = checkpoint.save(tmp_path, state, straight.trainable, updater.optimiser, keep=1)
    resumed, _ = policy_of(tiny, prompts, torch.float32)
    again = Updater(resumed, spec)
    assert checkpoint.read_state(path) == state
    checkpoint.restore(path, resumed.trainable, again.optimiser)
    for step in (2, 3):
        again.step(batches[step], step + 1, TimeShares())
    assert all(p.equal(resumed.trainable[name]) for name, p in straight.trainable.items()), "bit-identical"
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "checkpoints" / ".step-00000009.part").mkdir()  # a process was killed while it wrote
    assert checkpoint.checkpoints(tmp_path) == [path]
    atomic.sweep(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_a_checkpoint_of_another_tuning_is_refused(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    policy, spec = policy_of(tiny, prompts, torch.float32)
    state = checkpoint.LoopState(
        step=1,
        weights_version=1,
        gate_version=None,
        ledger=Ledger("r", 12, 0, 0, 3).state(),
        client_failures={},
        spec=spec,
    )
    path = checkpoint.save(tmp_path, state, policy.trainable, Updater(policy, spec).optimiser, keep=1)
    lora, lora_spec = policy_of(tiny, prompts, torch.float32, tuning=LoraTuning().model_dump())
    with pytest.raises(Invalid, match=r"tensors do not fit the model .* it belongs to another model or tuning"):
        checkpoint.restore(path, lora.trainable, Updater(lora, lora_spec).optimiser)


def test_images_are_encoded_once_and_the_cache_is_bounded(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, _ = policy_of(tiny, prompts)
    calls = []
    policy.model.base_model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        for prompt in rows_of[:4]:
            policy.prepare(prompt.messages, prompt.images)
    assert len(calls) == 4

    class Value:
        bytes = 40

    cache: ByteBoundCache[Value] = ByteBoundCache(100)
    for name in "abc":
        cache.put(name, Value())
    assert cache.get("a") is None
    assert cache.get("c") is not None


def test_gradient_checkpointing_changes_nothing(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    norms = []
    for recompute in (False, True):
        policy, spec = policy_of(tiny, prompts, gradient_checkpointing=recompute)
        norms.append(Updater(policy, spec).step(groups_of(policy, rows_of[:2]), 1, TimeShares()).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_an_unfrozen_tower_is_trained(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(tiny, prompts, freeze_vision=False)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    Updater(policy, spec).step(groups_of(policy, rows_of[:2]), 1, TimeShares())
    moved = {name for name, p in policy.trainable.items() if not p.equal(before[name])}
    assert any("vision_model" in name for name in moved)
    assert any("text_model" in name for name in moved)


def test_a_prompt_that_differs_between_engine_and_trainer_is_refused(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    from tests.trainer.records import rollout_of

    policy, _ = policy_of(tiny, prompts)
    prepared: PreparedPrompt = policy.prepare(rows_of[0].messages, rows_of[0].images)
    ids, pixels = prepared.encoded.token_ids, prepared.encoded.pixels

    def block(prompt_ids: tuple[int, ...]) -> TokenBlock:
        return TokenBlock(prompt_token_ids=prompt_ids, response_token_ids=((5,),), response_logprobs=((-1.0,),))

    check(prepared.encoded, rollout_of(pixels=pixels), block(ids))
    with pytest.raises(PromptMismatch, match=r"engine's prompt has .* \(first difference at 3\); run the same transf"):
        check(prepared.encoded, rollout_of(pixels=pixels), block((*ids[:3], 7, *ids[4:])))
    with pytest.raises(PromptMismatch, match="the engine's pixels hash to 0000"):
        check(prepared.encoded, rollout_of(pixels="0" * 64), block(ids))


def test_a_folder_that_is_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(Invalid, match="cannot be loaded"):
        loading.load(str(tmp_path))
