"""Which arms train a policy, and what is told of the policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from quality.arms import baselines
from quality.evidence import REFERENCE
from quality.grpo import best_arms, summary


def curve(value: float) -> dict[str, Any]:
    return {"kl": [0.5, 1.0], "correct": [0.9, value]}


def test_the_arms_are_mor_and_those_that_lead_furthest_at_one_nat() -> None:
    titles = [arm.title for arm in baselines()]
    curves = {title: curve(0.1) for title in titles} | {REFERENCE: curve(0.3)}
    curves |= {titles[3]: curve(0.4), titles[7]: curve(0.2), titles[1]: {"kl": [0.5], "correct": [0.9]}}
    found = best_arms({"policies": {"curves": curves}}, 3)
    assert [arm.title for arm in found] == [REFERENCE, titles[3], titles[7]]


def test_domains_count_alike_and_differences_are_paired() -> None:
    domains = np.array(["detail"] * 8 + ["medical"] * 4 + ["chart"] * 4)
    ours, theirs = np.ones(16), np.r_[np.zeros(8), np.ones(8)]
    found = summary({REFERENCE: ours, "other": theirs}, domains)
    assert found["other"]["accuracy"] == pytest.approx(200 / 3)
    assert found["other"]["worst"] == 0
    assert found["other"]["MoR ahead"]["mean"] == pytest.approx(50)
    assert found["other"]["MoR ahead"]["low"] > 20
    assert found[REFERENCE]["MoR ahead"] == {"mean": 0, "low": 0, "high": 0}
