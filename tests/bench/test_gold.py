"""What is said of policies whose answers were graded."""

from __future__ import annotations

import numpy as np
import pytest
from quality import tables
from quality.evidence import OTHERS, REFERENCE
from quality.gold import BASE, compare, verdict

DOMAINS = ["detail"] * 800 + ["medical"] * 400 + ["chart"] * 400


def answers(detail: float, medical: float, chart: float, seed: int = 0) -> np.ndarray:
    share = np.repeat([detail, medical, chart], [800, 400, 400])
    return (np.random.default_rng(seed).random(1600) < share).astype(float)


def test_domains_count_alike_and_differences_are_paired() -> None:
    found = compare({REFERENCE: np.ones(1600), "other": np.r_[np.zeros(800), np.ones(800)]}, DOMAINS)
    assert found["other"]["accuracy"] == pytest.approx(200 / 3)
    assert found["other"]["worst"] == 0
    assert found["other"]["MoR ahead"] == pytest.approx({"mean": 100 / 3, "low": 100 / 3, "high": 100 / 3})
    assert found["other"]["MoR ahead in the worst domain"]["low"] == 100
    assert found[REFERENCE]["MoR ahead"] == {"mean": 0, "low": 0, "high": 0}


def test_an_interval_covers_the_difference_and_worst_domains_need_not_be_the_same() -> None:
    found = compare({REFERENCE: answers(0.7, 0.9, 0.9), "other": answers(0.9, 0.9, 0.6, seed=1)}, DOMAINS)["other"]
    assert found["MoR ahead"]["low"] < 100 * (2.5 - 2.4) / 3 < found["MoR ahead"]["high"]
    assert found["MoR ahead in the worst domain"]["low"] < 10 < found["MoR ahead in the worst domain"]["high"]


def test_what_no_server_can_have_is_no_rival_and_what_is_open_is_named() -> None:
    better, like = answers(0.9, 0.9, 0.9), answers(0.8, 0.8, 0.8)
    arms = {BASE: answers(0.1, 0.1, 0.1), REFERENCE: like, "same": like, "better": better, OTHERS["central"]: better}
    found = compare(arms, DOMAINS)
    assert "in the mean to 1 of 2 (open: better); in the worst domain to 1 of 2 (open: better)" in verdict(found)
    assert tables.trained({"arms": found, "steps": 100, "questions": 1600}).count("\n|") == len(arms) + 1
