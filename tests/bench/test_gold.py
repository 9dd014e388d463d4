"""Comparison of graded policies."""

from __future__ import annotations

import numpy as np
import pytest
from quality import tables
from quality.evidence import OTHERS, REFERENCE
from quality.gold import BASE, compare, conclusion

DOMAINS = ["detail"] * 800 + ["medical"] * 400 + ["chart"] * 400


def answers(detail: float, medical: float, chart: float, seed: int = 0) -> np.ndarray:
    share = np.repeat([detail, medical, chart], [800, 400, 400])
    return (np.random.default_rng(seed).random((1, 1600)) < share).astype(float)


def test_domains_have_equal_weight_and_differences_are_paired() -> None:
    found = compare({REFERENCE: np.ones((1, 1600)), "other": np.r_[np.zeros(800), np.ones(800)][None]}, DOMAINS)
    assert found["other"]["accuracy"] == pytest.approx(200 / 3)
    assert found["other"]["worst"] == 0
    assert found["other"]["MoR ahead"] == pytest.approx({"mean": 100 / 3, "low": 100 / 3, "high": 100 / 3})
    assert found["other"]["MoR ahead in the worst domain"]["low"] == 100
    assert found[REFERENCE]["MoR ahead"] == {"mean": 0, "low": 0, "high": 0}


def test_an_interval_covers_the_difference_and_worst_domains_need_not_be_the_same() -> None:
    found = compare({REFERENCE: answers(0.7, 0.9, 0.9), "other": answers(0.9, 0.9, 0.6, seed=1)}, DOMAINS)["other"]
    assert found["MoR ahead"]["low"] < 100 * (2.5 - 2.4) / 3 < found["MoR ahead"]["high"]
    assert found["MoR ahead in the worst domain"]["low"] < 10 < found["MoR ahead in the worst domain"]["high"]


def test_differing_runs_widen_an_interval_and_are_all_listed() -> None:
    steady = {REFERENCE: np.ones((2, 1600)), "other": np.full((2, 1600), 0.5)}
    found = compare(steady | {"fickle": np.r_[np.zeros((1, 1600)), np.ones((1, 1600))]}, DOMAINS)
    assert found["other"]["MoR ahead"] == {"mean": 50, "low": 50, "high": 50}
    assert found["fickle"]["MoR ahead"] == {"mean": 50, "low": 0, "high": 100}
    assert found["fickle"]["runs"]["detail"] == [0, 100]
    text = tables.trained({"arms": found, "steps": 100, "seeds": [0, 1], "questions": 1600})
    assert "| fickle | 50.0 (0.0 to 100.0) |" in text
    assert "2 runs of 100 steps" in text


def test_an_arm_of_one_run_is_compared_with_each_run_of_the_other() -> None:
    found = compare({REFERENCE: np.r_[np.zeros((1, 1600)), np.ones((1, 1600))], BASE: np.zeros((1, 1600))}, DOMAINS)
    assert found[BASE]["MoR ahead"] == {"mean": 50, "low": 0, "high": 100}


def test_infeasible_arms_are_no_rivals_and_open_ones_are_named() -> None:
    better, like = answers(0.9, 0.9, 0.9), answers(0.8, 0.8, 0.8)
    arms = {BASE: answers(0.1, 0.1, 0.1), REFERENCE: like, "same": like, "better": better, OTHERS["central"]: better}
    found = compare(arms, DOMAINS)
    assert "in the mean to 1 of 2 (open: better); in the worst domain to 1 of 2 (open: better)" in conclusion(found)
    assert conclusion({REFERENCE: found[REFERENCE], BASE: found[BASE]}) == "There is no rival to compare with."
    assert tables.trained({"arms": found, "steps": 100, "seeds": [0], "questions": 1600}).count("\n|") == len(arms) + 1
