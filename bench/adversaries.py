"""Measurement of hostile clients: what they cost until audits take their weight, and whether they recognise honeypots.

``python bench/adversaries.py`` writes ``bench/results/adversaries.json``. It needs the reward models of ``make demo``
(``--demo``) and scikit-learn (``pip install --group bench``). ``adversary/campaign.py`` describes the attacks,
``adversary/recognition.py`` the classifier. ``--quick`` makes two runs of each case. With a part named, the other
part keeps its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from adversary import live_groups
from adversary.campaign import ATTACKER, ERROR, WEAK_ERROR, CampaignResult, World, make_world, run
from adversary.recognition import recognition
from adversary.recorded_calls import record as calls_of
from adversary.recording_material import questions
from adversary.situational_attacks import ATTACKERS, CLEAN, HONEST, LATE, LATE_ATTACKERS, WEAK
from machine import commit, record
from tables.results import read

GROUPS = 500
"""Live groups that are measured in each run."""
CASES = ((0.0, False), (0.02, True), (0.05, True))
"""Share of audits, and whether a suspected client's say is limited, as the router does: first without any defence."""
LIMITED = ", limited"
"""Mark of the cases in which a suspected client's say is limited."""
RUNS = 20
STEPS, QUICK_STEPS = 100, 12
"""Steps of the recorded run, of 16 groups each."""
_AT = (100, 200, GROUPS)
_LAST = 20
"""Groups at the end over which the attacker's weight is averaged."""


def measure(
    world: World, without: CampaignResult, title: str, share: float, limited: bool, seed: int
) -> dict[str, Any]:
    """Run one attack, and compare it with the same stream ``without`` the attacker."""
    late = title in LATE_ATTACKERS
    found = run(world, ATTACKERS[title], share=share, limited=limited, attacker=True, seed=seed)
    return _figures(found, without, LATE if late else 0, title)


def _figures(found: CampaignResult, without: CampaignResult, start: int, title: str) -> dict[str, Any]:
    lost = 100 * (without.accuracy - found.accuracy)[start : start + GROUPS]
    caught = found.distrusted.get(ATTACKER)
    false = [name for name in found.distrusted if name != ATTACKER or title in HONEST]
    return {
        **{f"lost_{groups}": float(np.nanmean(lost[:groups])) for groups in _AT},
        "lost_after_200": float(np.nanmean(lost[200:])),
        "weight": float(found.weight[start : start + GROUPS][-_LAST:].mean()),
        "groups_to_distrust": None if caught is None or caught <= start else caught - start,
        "audits": int(found.audited[start : start + GROUPS].sum()),
        "false_distrusts": len(false),
        "accuracy_without": float(100 * np.nanmean(without.accuracy[start : start + GROUPS])),
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average over runs, with 95 % intervals of the means; count what is counted."""
    measured = {}
    for name in (*(f"lost_{groups}" for groups in _AT), "lost_after_200", "weight", "audits", "accuracy_without"):
        values = np.array([one[name] for one in runs], dtype=float)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        mean = float(values.mean())
        measured[name] = {"mean": mean, "low": mean - half, "high": mean + half, "worst": float(values.max())}
    until = sorted(one["groups_to_distrust"] for one in runs if one["groups_to_distrust"] is not None)
    return {
        **measured,
        "caught": len(until),
        "groups_to_distrust": {"median": float(np.median(until)), "most": until[-1]} if until else None,
        "false_distrusts": sum(one["false_distrusts"] for one in runs),
        "runs": len(runs),
    }


def _case(live: live_groups.LiveGroups, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    worlds = {error: make_world(live, GROUPS + LATE, seed, error=error) for error in (ERROR, WEAK_ERROR)}
    without = {
        error: run(world, ATTACKERS[CLEAN], share=0.0, limited=False, attacker=False, seed=seed)
        for error, world in worlds.items()
    }
    errors = {title: WEAK_ERROR if title == WEAK else ERROR for title in ATTACKERS}
    return {
        title: {
            f"{share:g}{LIMITED if limited else ''}": measure(
                worlds[errors[title]], without[errors[title]], title, share, limited, seed
            )
            for share, limited in CASES
        }
        for title in ATTACKERS
    }


def attacks(live: live_groups.LiveGroups, runs: int, cores: int) -> dict[str, Any]:
    """Measure every attacker with every share of audits."""
    case = partial(_case, live)
    if cores > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(cores) as pool:
            found = list(pool.map(case, range(runs)))
    else:
        found = [case(seed) for seed in range(runs)]
    return {
        title: {share: summarise([one[title][share] for one in found]) for share in found[0][title]}
        for title in ATTACKERS
    }


def recognised(state: Path, steps: int) -> dict[str, Any]:
    """Measure how well a classifier tells honeypots from live calls, by the anchors of the objective."""
    live, operators, uploaded = questions(state)
    return {
        title: recognition(asyncio.run(calls_of(live, operators, uploaded, sampled=sampled, steps=steps)))
        for title, sampled in (("sampled from the policy", True), ("uploaded", False))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help="attacks or recognition; default: both")
    parser.add_argument("--state", type=Path, default=Path(".mor/adversaries"))
    parser.add_argument("--demo", type=Path, default=Path(".mor/demo"), help="folder of the demonstration")
    parser.add_argument("--quick", action="store_true", help="two runs of each case")
    parser.add_argument("--cores", type=int, default=2)
    chosen = parser.parse_args()
    parts = chosen.parts or ["attacks", "recognition"]
    if unknown := set(parts) - {"attacks", "recognition"}:
        raise SystemExit(f"unknown parts {sorted(unknown)}; choose from attacks, recognition")
    if "recognition" in parts and find_spec("sklearn") is None:  # said before minutes of work, not after
        raise SystemExit("scikit-learn is missing; run `pip install --group bench` from the repository")
    runs = 2 if chosen.quick else RUNS
    if "attacks" in parts:
        live_groups.prepare(chosen.state, chosen.demo, chosen.cores)
    else:
        live_groups.draw(chosen.state, chosen.demo)
    name = "adversaries-quick" if chosen.quick else "adversaries"
    kept = read(name) or {}
    figures = {
        key: kept[key]
        for key in ("groups", "runs", "late", "repetition", "stamps", "attacks", "recognition")
        if key in kept
    }
    stamp = {"measured": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit()}
    figures["stamps"] = figures.get("stamps", {}) | dict.fromkeys(parts, stamp)
    if "attacks" in parts:
        live = live_groups.load(chosen.state)
        repetition = float(np.mean([len(set(row)) < len(row) for row in live.texts.tolist()]))
        figures |= {"groups": GROUPS, "runs": runs, "late": LATE, "repetition": repetition}
        figures["attacks"] = attacks(live, runs, chosen.cores)
    if "recognition" in parts:
        figures["recognition"] = recognised(chosen.state, QUICK_STEPS if chosen.quick else STEPS)
    print(record(name, figures))


if __name__ == "__main__":
    main()
