"""Attacks on a live run with the router's own gate, fusion, suspicion and audits."""

from __future__ import annotations

import numpy as np
import pytest
from adversary.campaign import ATTACKER, World, make_world, run
from adversary.situational_attacks import ATTACKERS, CLEAN

from tests.bench.planted_groups import planted_groups

GROUPS = 240


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(planted_groups(900), GROUPS, seed=1)


def test_audits_take_the_weight_of_a_client_that_inverts_groups_with_repeats(world: World) -> None:
    attack = ATTACKERS["inverts groups with a repeated response"]
    free, caught = (run(world, attack, share=share, limited=True, attacker=True, seed=1) for share in (0.0, 0.05))
    absent = run(world, ATTACKERS[CLEAN], share=0.0, limited=True, attacker=False, seed=1)
    assert set(caught.distrusted) == {ATTACKER}
    assert caught.weight[-1] == 0
    assert free.weight[-1] > 0.3
    late = slice(GROUPS - 60, None)
    assert np.nanmean(caught.accuracy[late]) >= np.nanmean(absent.accuracy[late]) - 1e-9
    assert np.nanmean(free.accuracy[late]) < np.nanmean(absent.accuracy[late]) - 0.05


def test_a_limit_on_suspects_saves_accuracy_without_any_audit_and_costs_honest_clients_nothing(world: World) -> None:
    attack = ATTACKERS["inverts groups with a repeated response"]
    bare, limited = (run(world, attack, share=0.0, limited=limited, attacker=True, seed=1) for limited in (False, True))
    assert np.nanmean(limited.accuracy) > np.nanmean(bare.accuracy) + 0.05
    clean = [
        run(world, ATTACKERS[CLEAN], share=0.0, limited=limited, attacker=True, seed=1) for limited in (False, True)
    ]
    assert abs(np.nanmean(clean[0].accuracy) - np.nanmean(clean[1].accuracy)) < 0.01


def test_noise_is_held_down_and_found_by_audits(world: World) -> None:
    attack = ATTACKERS["noise, largest scores"]
    bare = run(world, attack, share=0.0, limited=False, attacker=True, seed=1)
    found = run(world, attack, share=0.05, limited=True, attacker=True, seed=1)
    absent = run(world, ATTACKERS[CLEAN], share=0.0, limited=True, attacker=False, seed=1)
    assert set(found.distrusted) == {ATTACKER}
    assert np.nanmean(bare.accuracy) < np.nanmean(absent.accuracy) - 0.1
    late = slice(GROUPS - 60, None)
    assert np.nanmean(found.accuracy[late]) >= np.nanmean(absent.accuracy[late]) - 0.03


def test_honest_clients_keep_their_weight(world: World) -> None:
    for seed in range(3):
        assert not run(world, ATTACKERS[CLEAN], share=0.05, limited=True, attacker=True, seed=seed).distrusted
