"""Each algorithm against a plain computation, and the properties of its loss."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from mor_core.algorithms import Algorithm, Cispo, Clip, Dapo, DrGrpo, Grpo, Gspo, Importance, Kl, WeightClip
from mor_core.runs import RunSpec
from mor_trainer.algorithm.advantage import advantages
from mor_trainer.algorithm.importance import correction
from mor_trainer.algorithm.loss import LossSums, micro_batch_loss
from mor_trainer.algorithm.losses import policy_loss_of
from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.trainer.plain import plain_loss

REWARDS = [[1.0, -0.5, 2.0, 0.3], [0.2, 0.21, 0.2, 0.19], [-3.0, 1.0, 0.0, 4.0]]
LENGTHS = [3, 7, 1, 5, 2, 2, 9, 4, 6, 1, 3, 8]
LOSSES = [
    Grpo(clip=Clip(low=0.2, high=0.3)),
    DrGrpo(),
    Dapo(),
    Gspo(clip=Clip(low=0.05, high=0.08)),
    Cispo(clip=WeightClip(low=0.4, high=0.5)),
]
CORRECTIONS = [
    Importance(kind=kind, level=level, cap=1.4) for kind in ("truncate", "mask") for level in ("token", "sequence")
]


def tokens_of(lengths: list[int], seed: int = 1, **changes: Tensor) -> LossTokens:
    """Tokens whose log-probabilities differ enough for every clip and cap to take effect."""
    dice = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    old = -torch.rand(n, dtype=torch.float64, generator=dice) * 3
    near = [old + torch.randn(n, dtype=torch.float64, generator=dice) * spread for spread in (0.5, 0.3, 0.3)]
    ones = torch.ones(n, dtype=torch.float64)
    response = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    fields: dict[str, Any] = {
        "policy": near[0], "old": old, "engine": near[1], "reference": near[2], "advantage": ones, "weight": ones / n,
        "response": response,
    }  # fmt: skip
    return LossTokens(**{**fields, **changes})


def part_of(tokens: LossTokens, place: slice) -> LossTokens:
    """A micro-batch: tokens of whole responses, numbered from 0."""
    fields = {name: value[place] for name, value in vars(tokens).items()}
    return LossTokens(**{**fields, "response": fields["response"] - fields["response"][0]})


def check_against_plain(config: Algorithm) -> LossSums:
    """Compare value and gradient of an update in two micro-batches with the plain computation; return the metrics."""
    counts = torch.tensor(LENGTHS)
    values = advantages(torch.tensor(REWARDS, dtype=torch.float64), config.advantage).flatten()
    weights = policy_loss_of(config.loss).token_weights(counts, 16)
    tokens = tokens_of(LENGTHS, advantage=values.repeat_interleave(counts), weight=weights.repeat_interleave(counts))
    tokens.policy.requires_grad_()
    border = sum(LENGTHS[:5])
    losses, sums = zip(
        *(micro_batch_loss(part_of(tokens, place), config) for place in (slice(0, border), slice(border, None))),
        strict=True,
    )
    ours = torch.autograd.grad(sum(losses), tokens.policy)[0]
    plain = tokens.policy.detach().clone().requires_grad_()
    assert tokens.reference is not None
    expected = plain_loss(
        plain, tokens.old.tolist(), tokens.engine.tolist(), tokens.reference.tolist(), REWARDS, LENGTHS, config, 16
    )
    expected.backward()
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.linalg.norm(ours - plain.grad) / torch.linalg.norm(plain.grad) < 1e-10
    return sums[0] + sums[1]


@pytest.mark.parametrize("advantage", ["group_std", "mean_only", "batch_std"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda config: config.kind)
def test_value_and_gradient_equal_a_plain_computation(loss, advantage: str) -> None:
    importance = Importance(cap=1.4)
    sums = check_against_plain(
        Algorithm(loss=loss, advantage={"kind": advantage}, kl=Kl(beta=0.1), importance=importance)
    )
    assert sums.clipped_low > 0
    assert sums.clipped_high > 0
    assert 0 < sums.limited < sums.tokens


@pytest.mark.parametrize("importance", CORRECTIONS, ids=lambda config: f"{config.kind} {config.level}")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda config: config.kind)
def test_every_correction_with_every_loss_equals_a_plain_computation(loss, importance: Importance) -> None:
    assert check_against_plain(Algorithm(loss=loss, importance=importance, kl=Kl(beta=0.1))).limited > 0


@pytest.mark.parametrize(
    ("estimator", "corrected"), [("k1", True), ("k2", True), ("k2", False), ("k3", True), ("k3", False)]
)
def test_every_penalty_equals_a_plain_computation(estimator, corrected: bool) -> None:
    check_against_plain(Algorithm(kl=Kl(estimator=estimator, corrected=corrected, beta=0.5)))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda config: config.kind)
def test_all_losses_are_the_policy_gradient_where_policy_and_sampler_agree(loss) -> None:
    """At ratio 1, −∂loss/∂log π_t is weight times advantage: REINFORCE with a baseline."""
    tokens = tokens_of(LENGTHS)
    advantage = torch.randn(len(tokens.old), dtype=torch.float64)
    policy = tokens.old.clone().requires_grad_()
    same = tokens_of(LENGTHS, policy=policy, engine=tokens.old, advantage=advantage)
    loss_value, sums = micro_batch_loss(same, Algorithm(loss=loss, kl=Kl(beta=0.0)))
    loss_value.backward()
    if loss.kind == "gspo":  # one advantage to a response, as groups have
        return_of = [advantage[same.response == row].mean() for row in range(len(LENGTHS))]
        advantage = torch.stack(return_of)[same.response]
    assert torch.allclose(-policy.grad, same.weight * advantage, rtol=1e-12, atol=1e-15)
    assert (sums.clipped_low, sums.clipped_high, sums.limited) == (0, 0, 0)
    assert sums.ratio.effective_sample_share == pytest.approx(1)


def test_gspo_clips_whole_responses_and_cispo_keeps_every_gradient() -> None:
    tokens = tokens_of(LENGTHS)
    gradients = {}
    for loss in (Grpo(), Gspo(), Cispo(clip=WeightClip(high=0.1))):
        policy = tokens.policy.clone().requires_grad_()
        config = Algorithm(loss=loss, kl=Kl(beta=0.0), importance=Importance(cap=100))
        micro_batch_loss(tokens_of(LENGTHS, policy=policy), config)[0].backward()
        gradients[loss.kind] = [policy.grad[tokens.response == row] for row in range(len(LENGTHS))]
    assert any(0 < (row == 0).sum() < len(row) for row in gradients["grpo"]), "some tokens of a response"
    assert all((row == 0).all() or (row != 0).all() for row in gradients["gspo"])
    assert any((row == 0).all() for row in gradients["gspo"])
    assert all((row != 0).all() for row in gradients["cispo"])


def test_the_weight_of_a_response_is_its_algorithms() -> None:
    lengths = torch.tensor([1, 3, 6])
    totals = {loss.kind: (policy_loss_of(loss).token_weights(lengths, 8) * lengths).tolist() for loss in LOSSES}
    assert totals["grpo"] == totals["gspo"] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert totals["dapo"] == totals["cispo"] == pytest.approx([0.1, 0.3, 0.6])
    assert totals["dr_grpo"] == pytest.approx([1 / 24, 3 / 24, 6 / 24])


# --- importance correction ----------------------------------------------------------------------------------------


def correction_weights(ratios: list[float], **config: Any) -> list[float]:
    """Correction of the tokens of two responses, the first of two tokens."""
    response = torch.tensor([0, 0] + [1] * (len(ratios) - 2))
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log()
    return correction(log_ratio, response, Importance(**config)).weight.tolist()


def test_truncation_and_masking_by_token_and_by_sequence() -> None:
    ratios = [1.5, 3.0, 0.9, 0.4, 1.25]
    assert correction_weights(ratios, kind="truncate") == pytest.approx([1.5, 2.0, 0.9, 0.4, 1.25])
    assert correction_weights(ratios, kind="mask") == pytest.approx([1.5, 0.0, 0.9, 0.0, 1.25])
    assert correction_weights(ratios, kind="truncate", level="sequence") == pytest.approx([2.0, 2.0, 0.45, 0.45, 0.45])
    assert correction_weights(ratios, kind="mask", level="sequence") == [0.0] * 5
    assert correction_weights(ratios, kind="mask", level="sequence", cap=3.0) == pytest.approx(
        [0.0, 0.0, 0.45, 0.45, 0.45]
    )
    assert correction_weights(ratios, kind="none") == [1.0] * 5


def test_an_extreme_ratio_gives_no_nan() -> None:
    response, apart = torch.tensor([0, 0]), torch.tensor([500.0, 500.0])
    for level in ("token", "sequence"):
        assert correction(apart, response, Importance(kind="mask", level=level)).weight.tolist() == [0.0, 0.0]
        assert correction(apart, response, Importance(kind="truncate", level=level)).weight.tolist() == [2.0, 2.0]
        assert correction(-apart, response, Importance(kind="mask", level=level)).weight.tolist() == [0.0, 0.0]


def expected_gradient(logits: Tensor, sampler: Tensor, rewards: Tensor, level) -> Tensor:
    """Gradient of the loss in expectation over all responses of two tokens under ``sampler``.

    Logits: of the first token, and of the second given the first, as rows of one table.
    """

    def logprobs(table: Tensor, first: int, second: int) -> Tensor:
        table = table.log_softmax(-1)
        return torch.stack([table[0, first], table[1 + first, second]])

    total = torch.zeros((), dtype=torch.float64)
    config = Algorithm(loss=DrGrpo(), kl=Kl(beta=0.0), importance=Importance(level=level, cap=1e9))
    for first, second in itertools.product(range(3), repeat=2):
        policy, engine = logprobs(logits, first, second), logprobs(sampler, first, second)
        ones = torch.ones(2, dtype=torch.float64)
        tokens = LossTokens(
            policy, policy.detach(), engine, None, rewards[first, second] * ones, ones, torch.tensor([0, 0])
        )
        total = total + engine.exp().prod() * micro_batch_loss(tokens, config)[0]
    return torch.autograd.grad(-total, logits)[0]


def test_only_the_sequence_ratio_is_the_exact_policy_gradient_of_another_samplers_responses() -> None:
    dice = torch.Generator().manual_seed(3)
    logits, sampler = torch.randn(2, 4, 3, dtype=torch.float64, generator=dice)
    rewards = torch.randn(3, 3, dtype=torch.float64, generator=dice)
    logits.requires_grad_()
    table = logits.log_softmax(-1)
    value = (table[0][:, None] + table[1:]).exp().mul(rewards).sum()
    exact = torch.autograd.grad(value, logits)[0]
    assert torch.allclose(expected_gradient(logits, sampler, rewards, "sequence"), exact, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(expected_gradient(logits, sampler, rewards, "token"), exact, rtol=0.02)


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": {"kind": "ppo"}}, "'ppo' found using 'kind' does not match any of the expected tags: 'grpo', 'dr_"),
        ({"loss": {"kind": "grpo", "clip": {"low": 0}}}, r"loss.grpo.clip.low\s+Input should be greater than 0"),
        ({"loss": {"kind": "gspo", "clip": {"high": -0.1}}}, r"loss.gspo.clip.high\s+Input should be greater than 0"),
        ({"loss": {"kind": "grpo", "clip": {"low": 1.0}}}, r"clip.low\s+Input should be less than 1"),
        ({"loss": {"kind": "cispo", "clip": {"low": 1.5}}}, r"clip.low\s+Input should be less than or equal to 1"),
        ({"loss": {"kind": "dapo", "epsilon": 0.2}}, r"loss.dapo.epsilon\s+Extra inputs are not permitted"),
        ({"advantage": {"kind": "batch_std", "floor": 0}}, r"floor\s+Input should be greater than 0"),
        ({"importance": {"cap": 1.0}}, r"importance.cap\s+Input should be greater than 1"),
        ({"importance": {"level": "response"}}, "Input should be 'token' or 'sequence'"),
        ({"importance": {"kind": "none", "level": "sequence"}}, "level='sequence' has no effect with kind='none'"),
        ({"dynamic_sampling": {"max_factor": 1.0}}, r"dynamic_sampling.max_factor\s+Input should be greater than 1"),
        ({"kl": {"estimator": "k1", "corrected": False}}, "k1 without correction has zero expected gradient"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_with_its_place(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Algorithm.model_validate(config)


def test_dynamic_sampling_that_could_replace_nothing_is_refused() -> None:
    fields = {"name": "r", "model": "m", "prompts": "p", "groups_per_step": 4}
    RunSpec.model_validate({**fields, "algorithm": {"dynamic_sampling": {"max_factor": 1.25}}})
    with pytest.raises(ValidationError, match=r"leaves no group to replace one of groups_per_step=4; set it to 1\.25"):
        RunSpec.model_validate({**fields, "algorithm": {"dynamic_sampling": {"max_factor": 1.2}}})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda config: config.kind)
def test_a_configuration_survives_json(loss) -> None:
    config = Algorithm(loss=loss)
    assert TypeAdapter(Algorithm).validate_json(config.model_dump_json()) == config


def test_clip_defaults_are_the_papers() -> None:
    assert (Dapo().clip.low, Dapo().clip.high) == (0.2, 0.28)
    assert (Gspo().clip.low, Gspo().clip.high) == (3e-4, 4e-4)
    assert math.isclose(1 - Cispo().clip.low, 0), "no lower limit"
