"""Advantage, loss, KL, importance correction, log-probabilities and packing against plain independent computations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mor_core.algorithms import Algorithm, BatchStd, GroupStd, Importance, Kl, MeanOnly
from mor_core.errors import Invalid
from mor_core.optimisation import Optimiser
from mor_trainer.algorithm import kl
from mor_trainer.algorithm.advantage import advantages
from mor_trainer.algorithm.importance import RatioStatistics
from mor_trainer.algorithm.loss import micro_batch_loss
from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.schedule import learning_rate
from mor_trainer.model.logprobs import chosen_logprobs
from mor_trainer.model.micro_batches import packed_batches, padded_batches

NONE = torch.tensor([], dtype=torch.long)


def test_advantages_are_standardised_within_the_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 9.0]], dtype=torch.float64)
    for row, got in zip(rewards, advantages(rewards, GroupStd()), strict=True):
        spread = math.sqrt(sum((r - row.mean()) ** 2 for r in row.tolist()) / 4)
        assert got.tolist() == pytest.approx([(r - row.mean().item()) / spread for r in row.tolist()])
    assert advantages(rewards, MeanOnly())[0].tolist() == [-2.0, -1.0, 0.0, 3.0]


def test_a_group_with_nearly_equal_rewards_gets_almost_no_advantage() -> None:
    noise = torch.tensor([[1.0, 1.001, 0.999, 1.0]], dtype=torch.float64)
    assert advantages(noise, GroupStd(floor=0.1)).abs().max() < 0.011
    assert not advantages(torch.full((1, 8), 3.0), GroupStd()).any()


def test_standardising_over_the_step_keeps_the_relative_weight_of_groups() -> None:
    rewards = torch.tensor([[1.0, 3.0], [10.0, 16.0]], dtype=torch.float64)
    values = advantages(rewards, BatchStd())
    spread = math.sqrt((1 + 1 + 9 + 9) / 4)
    assert values.flatten().tolist() == pytest.approx([-1 / spread, 1 / spread, -3 / spread, 3 / spread])
    assert values.square().mean().item() == pytest.approx(1)
    assert advantages(rewards, GroupStd()).flatten().tolist() == pytest.approx([-1, 1, -1, 1])
    assert advantages(torch.full((2, 8), 3.0), BatchStd()).abs().max() == 0


@pytest.fixture
def categorical() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a policy, a reference and a sampler over seven tokens."""
    torch.manual_seed(2)
    return tuple(torch.randn(3, 7, dtype=torch.float64))  # type: ignore[return-value]


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_k1_and_k3_are_unbiased_and_k2_is_positive(categorical, estimator: str, unbiased: bool) -> None:
    policy, reference, _ = (logits.log_softmax(-1) for logits in categorical)
    exact = (policy.exp() * (policy - reference)).sum()
    estimate = (policy.exp() * getattr(kl, estimator)(policy, reference)).sum()
    if unbiased:
        assert estimate.item() == pytest.approx(exact.item(), rel=1e-12)
    else:
        assert estimate > 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_corrected_gradient_is_the_gradient_of_the_kl(categorical, estimator) -> None:
    logits, reference, sampler = categorical
    logits, reference, sampler = logits.requires_grad_(), reference.log_softmax(-1), sampler.log_softmax(-1)
    policy = logits.log_softmax(-1)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    penalty = kl.penalty(policy, reference, (policy - sampler).exp(), Kl(estimator=estimator))
    got = torch.autograd.grad((sampler.exp() * penalty).sum(), logits)[0]
    assert torch.allclose(got, exact, rtol=1e-10, atol=1e-12)


def test_the_uncorrected_k3_has_another_gradient(categorical) -> None:
    logits, reference, _ = categorical
    logits, reference = logits.requires_grad_(), reference.log_softmax(-1)
    policy = logits.log_softmax(-1)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    plain = kl.penalty(policy, reference, torch.ones_like(policy), Kl(estimator="k3", corrected=False))
    got = torch.autograd.grad((policy.detach().exp() * plain).sum(), logits)[0]
    assert not torch.allclose(got, exact, rtol=0.05)


@pytest.mark.parametrize("kind", ["truncate", "none"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_in_the_loss_has_the_gradient_of_the_kl(categorical, estimator, kind) -> None:
    """The whole penalty path in expectation over the engine; policy, old policy and engine all differ."""
    logits, reference, sampler = categorical
    logits, reference, sampler = logits.requires_grad_(), reference.log_softmax(-1), sampler.log_softmax(-1)
    policy = logits.log_softmax(-1)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    old = sampler if kind == "none" else (policy.detach() + sampler) / 2
    tokens = LossTokens(policy, old, sampler, reference, torch.zeros(7), sampler.exp(), torch.arange(7))
    config = Algorithm(kl=Kl(estimator=estimator, beta=0.5), importance={"kind": kind, "cap": 1e6})
    loss, sums = micro_batch_loss(tokens, config)
    got = torch.autograd.grad(loss, logits)[0]
    assert torch.allclose(got, 0.5 * exact, rtol=1e-10, atol=1e-12)
    assert sums.kl == pytest.approx(kl.k3(policy.detach(), reference).sum().item())


def test_a_token_over_the_cap_has_a_gradient_of_the_size_of_the_cap() -> None:
    policy = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    engine, one = torch.tensor([-3.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    tokens = LossTokens(policy, policy.detach(), engine, None, -one, one, torch.tensor([0]))
    micro_batch_loss(tokens, Algorithm(importance=Importance(cap=2.0)))[0].backward()
    assert policy.grad.item() == pytest.approx(2.0)  # without truncation: e^3


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_ratio_statistics_add_up(values: list[float]) -> None:
    whole = RatioStatistics.of(torch.tensor(values))
    parts = RatioStatistics.of(torch.tensor(values[:3])) + RatioStatistics.of(torch.tensor(values[3:]))
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.largest == whole.largest
    assert 0 < whole.effective_sample_share <= 1 + 1e-9


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_log_probabilities_equal_plain_ones(temperature: float) -> None:
    torch.manual_seed(3)
    head = torch.nn.Linear(12, 50, bias=False).double()
    hidden = torch.randn(37, 12, dtype=torch.float64)
    forbidden = torch.tensor([4, 17, 49])
    chosen = torch.tensor([token for token in range(37) if token not in (4, 17)] + [1, 2])
    gradients = []
    for chunk in (50 * 5, 1 << 20):
        states = hidden.clone().requires_grad_()
        head.zero_grad()
        logprobs, entropy = chosen_logprobs(
            states, head, chosen, temperature=temperature, forbidden=forbidden, vocabulary=50, chunk_elements=chunk
        )
        logprobs.square().sum().backward()
        gradients.append((states.grad, head.weight.grad.clone()))
    logits = head(hidden) / temperature
    logits[:, forbidden] = -math.inf
    distribution = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(logprobs, distribution.log_prob(chosen), atol=1e-12)
    expected = -(distribution.probs * distribution.probs.clamp_min(1e-300).log()).sum(-1)
    assert torch.allclose(entropy, expected, atol=1e-12)
    assert not entropy.requires_grad
    for ours, whole in zip(*gradients, strict=True):
        assert torch.allclose(ours, whole, atol=1e-12)


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(60, 400))
def test_micro_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    padded, packed = padded_batches(lengths, budget), packed_batches(lengths, budget)
    for batches in (padded, packed):
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= budget for batch in padded)
    loads = [sum(lengths[row] for row in batch) for batch in packed]
    assert all(load <= budget for load in loads)
    assert sum(load <= budget / 2 for load in loads) <= 1, "two half-empty micro-batches would be one"


@pytest.mark.parametrize("divide", [padded_batches, packed_batches])
def test_a_sequence_over_the_budget_names_the_cure(divide: Callable[[list[int], int], object]) -> None:
    with pytest.raises(Invalid, match="500 tokens does not fit micro_batch_tokens=400; raise micro_batch_tokens"):
        divide([20, 500], 400)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = Optimiser(lr=1.0, warmup_steps=3, decay="linear")
    rates = [learning_rate(config, step, 10) for step in range(1, 11)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.2
    constant = Optimiser(lr=1.0, warmup_steps=0)
    assert {learning_rate(constant, step, 10) for step in range(1, 11)} == {1.0}
