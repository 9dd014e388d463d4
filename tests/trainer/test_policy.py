"""The policy on real tiny models: log-probabilities, gradients, reference and updates."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.algorithms import Algorithm, Kl
from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.optimisation import LoraTuning
from mor_core.sampling import forbidden_token_ids
from mor_core.wire import TokenBlock
from mor_trainer.model.packed_sequences import PackedSequence, PreparedPrompt
from mor_trainer.model.prompt_processor import PromptMismatch, check_same_prompt
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater, UpdateReport
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.tiny_models import build_tiny_vlm
from tests.trainer.plain import plain_loss
from tests.trainer.policies import KINDS, groups_of, policy_of
from tests.trainer.stages import Sampler


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_tiny_vlm(tmp_path_factory.mktemp(kind), kind=kind, scale=2.0) for kind in KINDS}  # type: ignore[arg-type]


def plain_logprobs(model: Any, processor: Any, prompt: Prompt, response: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of one response from one full forward pass with pixel values, without the policy's code."""
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
    assert policy.shares_prompts
    responses = ((30, 41, 52, 63, 74), (99,), (120, 33))
    rows = [PackedSequence(policy.prepare(prompt.messages, prompt.images), responses) for prompt in rows_of[:2]]
    if not policy.shares_prompts:
        rows = [PackedSequence(row.prompt, (response,)) for row in rows for response in row.responses]
    with torch.no_grad():
        got = policy.logprobs(rows)[0]
        wanted = torch.cat(
            [plain_logprobs(policy.model, policy.processor, p, r) for p in rows_of[:2] for r in responses]
        )
    assert torch.allclose(got, wanted, atol=1e-5), (got - wanted).abs().max()


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_a_model_without_feature_inputs_gets_pixels_each_time(
    models: dict[str, Path], kind: str, prompts: Path, rows_of: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of transformers before 5.18: their forward drops features among its other arguments."""
    inner = type(AutoModelForImageTextToText.from_pretrained(models[kind]).base_model)
    whole = inner.forward

    def forward(self: Any, input_ids: Any = None, pixel_values: Any = None, **rest: Any) -> Any:
        rest.pop("mm_encoder_outputs", None)
        return whole(self, input_ids=input_ids, pixel_values=pixel_values, **rest)

    monkeypatch.setattr(inner, "forward", forward)
    policy, _ = policy_of(models[kind], prompts)
    prompt, response = rows_of[0], (30, 41, 52)
    with torch.no_grad():
        got = policy.logprobs([PackedSequence(policy.prepare(prompt.messages, prompt.images), (response,))])[0]
        wanted = plain_logprobs(policy.model, policy.processor, prompt, response)
    assert torch.allclose(got, wanted, atol=1e-5), (got - wanted).abs().max()


def test_engine_and_trainer_agree_on_sampled_tokens(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    from mor_core.wire import PromptRecord, Sampling, WeightsRef

    policy, _ = policy_of(tiny, prompts, torch.float32)
    prompt = rows_of[0]
    record = PromptRecord(
        run="r", group_id="g", prompt_id="p", messages=prompt.messages,
        sampling=Sampling(group_size=4, max_tokens=8), weights=WeightsRef(version=0),
    )  # fmt: skip
    block, _, pixels = Sampler(tiny).sample(record, prompt.images)
    prepared = policy.prepare(prompt.messages, prompt.images)
    assert prepared.processed.pixels == pixels
    assert prepared.processed.token_ids == block.prompt_token_ids
    with torch.no_grad():
        ours = policy.logprobs([PackedSequence(prepared, block.response_token_ids)])[0]
    theirs = torch.tensor([value for row in block.response_logprobs for value in row])
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_the_parameter_gradient_equals_that_of_a_plain_implementation(
    models: dict[str, Path], kind: str, prompts: Path, rows_of: list[Prompt]
) -> None:
    """Micro-batches, shared prompts, cached features, reference and clip against loops over whole forwards."""
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
    updater.step(groups, 1, StepTimer())

    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            parameter.copy_(trained[name])
    base = AutoModelForImageTextToText.from_pretrained(models[kind], dtype=torch.float64).eval()
    flat = [(prompt, r) for prompt, group in zip(rows_of, groups, strict=False) for r in group.responses]
    ours = torch.cat([plain_logprobs(policy.model, policy.processor, p, r) for p, r in flat])
    with torch.no_grad():
        reference = torch.cat([plain_logprobs(base, policy.processor, p, r) for p, r in flat])
    engine = [v for g in groups for row in g.engine_logprobs for v in row]
    lengths = [len(response) for _, response in flat]
    loss = plain_loss(
        ours, ours.tolist(), engine, reference.tolist(), [g.rewards for g in groups], lengths, algorithm, 6
    )
    policy.model.zero_grad()
    loss.backward()
    difference = sum((captured[n] - p.grad).square().sum() for n, p in policy.trainable.items() if p.grad is not None)
    size = sum(p.grad.square().sum() for p in policy.trainable.values() if p.grad is not None)
    assert (difference / size).sqrt() < 1e-5


def test_the_same_groups_give_the_same_bits(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    ends = []
    for _ in range(2):
        policy, spec = policy_of(tiny, prompts, torch.float32, optimiser={"lr": 1e-3, "updates_per_step": 2})
        updater = Updater(policy, spec)
        for step in (1, 2):
            updater.step(groups_of(policy, rows_of[:4], seed=step), step, StepTimer())
        ends.append({name: p.detach().clone() for name, p in policy.trainable.items()})
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
def test_the_clip_range_limits_how_far_a_step_moves_the_policy_not_the_difference_to_the_engine(
    tiny: Path, prompts: Path, rows_of: list[Prompt], loss: str
) -> None:
    def report(updates: int, **importance: str) -> UpdateReport:
        algorithm = {"loss": {"kind": loss, "clip": {"low": 0.01, "high": 0.01}}, "importance": importance}
        optimiser = {"lr": 1e-2, "warmup_steps": 0, "updates_per_step": updates}
        policy, spec = policy_of(tiny, prompts, algorithm=algorithm, optimiser=optimiser)
        return Updater(policy, spec).step(groups_of(policy, rows_of[:4]), 1, StepTimer())

    first, second, direct = report(1), report(2), report(1, kind="none")
    assert first.sums.clipped_low + first.sums.clipped_high == 0, "the first update's ratio is 1"
    assert second.sums.clipped_low + second.sums.clipped_high > 0, "the second update's is not"
    assert direct.sums.clipped_low + direct.sums.clipped_high > 0, "the engine's log-probabilities are the old ones"
    assert first.sums.ratio == direct.sums.ratio, "the raw ratio is reported either way"
    assert first.sums.limited > 0
    assert direct.sums.limited == 0
    assert second.processed_tokens > first.processed_tokens


def test_groups_with_nearly_equal_rewards_hardly_move_the_policy(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    norms = []
    for spread in (1.0, 1e-4):
        policy, spec = policy_of(tiny, prompts, algorithm={"kl": {"beta": 0.0}})
        assert not policy.has_reference
        groups = [
            replace(g, rewards=tuple(1.0 + spread * r for r in g.rewards)) for g in groups_of(policy, rows_of[:2])
        ]
        norms.append(Updater(policy, spec).step(groups, 1, StepTimer()).grad_norm)
    assert norms[1] < 0.003 * norms[0]


def test_an_update_that_is_not_finite_is_left_out_and_counted(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(tiny, prompts)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    groups = groups_of(policy, rows_of[:2])
    broken = replace(groups[0], rewards=(1e308, -1e308, 1e308, 0.0))
    report = Updater(policy, spec).step([broken, groups[1]], 1, StepTimer())
    assert report.skipped == 1
    assert all(parameter.equal(before[name]) for name, parameter in policy.trainable.items())


def test_shuffled_rewards_are_a_permutation_and_differ_by_step(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    policy, spec = policy_of(tiny, prompts, control_rewards="shuffled", algorithm={"advantage": {"kind": "mean_only"}})
    groups = [
        replace(g, rewards=(10.0 * i, 10.0 * i + 1, 10.0 * i + 2, 10.0 * i + 3))
        for i, g in enumerate(groups_of(policy, rows_of[:3]))
    ]
    updater = Updater(policy, spec)
    first, second = (updater.step(groups, step, StepTimer()).advantages for step in (1, 2))
    assert first != second
    assert max(abs(a) for row in first for a in row) > 3, "rewards crossed over groups"


def test_the_reference_shares_the_tensors_that_are_not_trained(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    policy, spec = policy_of(tiny, prompts)
    reference = policy._reference.model
    ours = dict(policy.model.named_parameters())
    for name, parameter in reference.named_parameters():
        assert (parameter is ours[name]) == (name not in policy.trainable), name
        assert not parameter.requires_grad
    groups = groups_of(policy, rows_of[:2])
    rows = [PackedSequence(group.prepared, group.responses) for group in groups]
    before = policy.reference_logprobs(rows)
    Updater(policy, spec).step(groups, 1, StepTimer())
    assert policy.reference_logprobs(rows).equal(before)
    with torch.no_grad():
        assert not policy.logprobs(rows)[0].equal(before)


def test_lora_targets_that_match_no_layer_are_refused(tiny: Path, prompts: Path) -> None:
    with pytest.raises(Invalid, match=r"tuning.targets \['nonsense'\] name no linear layer .*; it has .*q_proj"):
        policy_of(tiny, prompts, tuning=LoraTuning(targets=("q_proj", "nonsense")).model_dump())


def test_each_image_is_encoded_once(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, _ = policy_of(tiny, prompts)
    calls = []
    policy.model.base_model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        for prompt in rows_of[:4]:
            policy.prepare(prompt.messages, prompt.images)
    assert len(calls) == 4


def test_gradient_checkpointing_does_not_change_the_gradient(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    norms = []
    for recompute in (False, True):
        policy, spec = policy_of(tiny, prompts, gradient_checkpointing=recompute)
        norms.append(Updater(policy, spec).step(groups_of(policy, rows_of[:2]), 1, StepTimer()).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_a_vision_tower_that_is_not_frozen_is_trained(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(tiny, prompts, freeze_vision=False)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    Updater(policy, spec).step(groups_of(policy, rows_of[:2]), 1, StepTimer())
    moved = {name for name, p in policy.trainable.items() if not p.equal(before[name])}
    assert any("vision_model" in name for name in moved)
    assert any("text_model" in name for name in moved)


def test_a_prompt_that_differs_between_engine_and_trainer_is_refused(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    from tests.trainer.records import rollout_of

    policy, _ = policy_of(tiny, prompts)
    prepared: PreparedPrompt = policy.prepare(rows_of[0].messages, rows_of[0].images)
    ids, pixels = prepared.processed.token_ids, prepared.processed.pixels

    def block(prompt_ids: tuple[int, ...]) -> TokenBlock:
        return TokenBlock(prompt_token_ids=prompt_ids, response_token_ids=((5,),), response_logprobs=((-1.0,),))

    check_same_prompt(prepared.processed, rollout_of(pixels=pixels), block(ids))
    with pytest.raises(PromptMismatch, match=r"engine's prompt has .* \(first difference at 3\); run the same transf"):
        check_same_prompt(prepared.processed, rollout_of(pixels=pixels), block((*ids[:3], 7, *ids[4:])))
    with pytest.raises(PromptMismatch, match="the engine's pixels hash to 0000"):
        check_same_prompt(prepared.processed, rollout_of(pixels="0" * 64), block(ids))
