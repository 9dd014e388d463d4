"""Mathematics of the federated baselines: averages, proximal term, losses, advantage, and equal compute."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
import torch
from quality.arms.competence import Competence
from quality.federated.adapters import proximal, size, weighted_mean
from quality.federated.compute import SERVER, Budget, Ledger, UnequalCompute
from quality.federated.grpo_training import _plan
from quality.federated.local_training import batches
from quality.federated.losses import dpo, fed_grpo_advantage, grpo, sft
from torch import Tensor

from tests.bench.synthetic import anchors, groups


def adapter(*values: float) -> dict[str, Tensor]:
    return {"a": torch.tensor(values), "b": torch.tensor([[values[0]]])}


def test_the_mean_weighs_clients_by_their_pairs() -> None:
    found = weighted_mean([adapter(1.0, 2.0), adapter(5.0, -2.0)], [300, 100])
    assert found["a"].tolist() == pytest.approx([2.0, 1.0])
    assert found["b"].tolist() == [[pytest.approx(2.0)]]
    assert size(found) == 12


@pytest.mark.parametrize(("others", "weights"), [([], []), ([{"c": torch.ones(1)}], [1, 1]), ([], [0])])
def test_adapters_that_do_not_fit_have_no_mean(others: list[dict[str, Tensor]], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="adapter"):
        weighted_mean([adapter(1.0, 1.0), *others] if weights else [], weights)


def test_the_proximal_term_pulls_towards_the_common_adapter() -> None:
    own, common = {"a": torch.tensor([3.0, 1.0], requires_grad=True)}, {"a": torch.tensor([1.0, 1.0])}
    term = proximal(own, common, 0.5)
    term.backward()  # type: ignore[no-untyped-call]
    assert term.item() == pytest.approx(0.5 * 0.5 * 4)
    assert own["a"].grad is not None
    assert own["a"].grad.tolist() == pytest.approx([0.5 * 2.0, 0.0])


def test_dpo_starts_at_the_log_of_two_and_falls_with_the_margin() -> None:
    reference = torch.tensor([-3.0, -4.0]), torch.tensor([-2.0, -5.0])
    assert dpo(*reference, *reference, 0.1).item() == pytest.approx(np.log(2))
    better = dpo(reference[0] + 1, reference[1] - 1, *reference, 0.1).item()
    assert better == pytest.approx(np.log1p(np.exp(-0.1 * 2)))


def test_sft_counts_tokens_and_not_their_padding() -> None:
    chosen, mask = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    assert sft(chosen, mask).item() == pytest.approx(2.0)


def test_grpo_on_policy_has_the_gradient_of_the_policy_gradient() -> None:
    policy = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss = grpo(policy, policy.detach(), mask, torch.tensor([1.5, -1.0]), beta=0.3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    np.testing.assert_allclose(policy.grad, [[-0.5, -0.5], [1 / 3, 0.0]], atol=1e-6)


def test_grpo_pulls_back_to_the_reference_without_an_advantage() -> None:
    policy = torch.tensor([[-1.0]], requires_grad=True)
    grpo(policy, torch.tensor([[-2.0]]), torch.tensor([[True]]), torch.zeros(1), beta=0.3).backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert policy.grad.item() == pytest.approx(0.3 * (1 - np.exp(-1.0)))


def test_the_advantage_of_fedgrpo_has_unit_deviation_however_alike_the_rewards() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.1, 0.2, 0.3, 0.6], [1.0, 1.0, 1.0, 1.0]])
    found = fed_grpo_advantage(rewards)
    row = rewards[0].numpy()
    np.testing.assert_allclose(found[0], (row - row.mean()) / (row.std(ddof=1) + 1e-4), rtol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)
    assert found[2].tolist() == [0, 0, 0, 0]


def test_experts_are_the_specialists_of_the_nearest_anchors() -> None:
    competence, live = Competence(anchors()), groups(40, seed=3)
    experts = competence.experts(live.inputs)
    assert experts.shape == (40, 3)
    assert (experts[:, 0] == np.arange(40) % 4).mean() > 0.9
    assert competence.rewards(live, experts).shape == live.scores[:, 0].shape


def test_batches_have_one_size_and_use_each_pair_once_per_pass() -> None:
    drawn = list(islice(batches(list(range(10)), 4, "seed"), 5))
    assert [len(batch) for batch in drawn] == [4] * 5
    assert sorted(chain.from_iterable(drawn))[::2] == list(range(10))
    assert drawn == list(islice(batches(list(range(10)), 4, "seed"), 5))
    assert len(next(batches([1, 2], 5, "more than there are"))) == 5


def spent(**rows: int) -> Ledger:
    ledger = Ledger()
    for place, count in rows.items():
        for _ in range(count):
            ledger.stepped(place, 4)
    return ledger


def test_equal_compute_is_enforced() -> None:
    budget = Budget(steps=6, batch=4, rounds=2)
    clients = ["one", "two"]
    spent(one=6, two=6).check(budget, clients, local=True, server=False)
    spent(server=12).check(budget, clients, local=False, server=True)
    spent(one=6, two=6, server=12).check(budget, clients, local=True, server=True)
    for ledger in (spent(one=6, two=5), spent(one=6), spent(one=6, two=6, server=1), spent()):
        with pytest.raises(UnequalCompute, match="budget"):
            ledger.check(budget, clients, local=True, server=False)
    small = Ledger()
    for place in clients:
        for _ in range(12):
            small.stepped(place, 2)
    with pytest.raises(UnequalCompute, match="gradient steps"):
        small.check(budget, clients, local=True, server=False)


def test_a_budget_divides_into_rounds_and_into_groups() -> None:
    with pytest.raises(ValueError, match="7 steps do not divide into 2 rounds"):
        Budget(steps=7, batch=4, rounds=2)
    assert Budget(steps=6, batch=4, rounds=2).of_server(2) == 48
    assert sum(8 * groups for groups in _plan(8 * 21)) == 8 * 21
    with pytest.raises(ValueError, match="multiple of a group"):
        _plan(12)
    assert SERVER == "server"
