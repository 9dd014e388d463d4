"""Membership attacks on the demonstration's reward models, without differential privacy and with ε = 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mor_core.wire import MembershipAttack
from mor_reward.audit.audit_job import AuditFindings, AuditJob, audit
from mor_reward.model_store import read_manifest
from mor_reward.progress import ProgressLines
from three_domains import prepare
from three_domains.prepare import PreparationStep
from three_domains.stack import CLIENTS

EPSILONS = (None, 3.0)
"""ε of each arm; None trains without differential privacy."""
SHADOWS, QUICK_SHADOWS = 16, 4
_PRESET, _SEED, _THREADS = "default", 0, 1


def measure(state: Path, quick: bool) -> dict[str, Any]:
    """Train and audit each client's model in each arm; an audited model is not audited again by the same shadows."""
    torch.set_num_threads(_THREADS)
    for step in prepare.steps(state, _PRESET, _SEED):
        step.run()
    shadows = QUICK_SHADOWS if quick else SHADOWS
    return {
        "shadows": shadows,
        "clients": {
            client: {name(epsilon): _audited(state, client, epsilon, shadows) for epsilon in EPSILONS}
            for client in sorted(CLIENTS)
        },
    }


def name(epsilon: float | None) -> str:
    """Name of an arm in the results."""
    return "none" if epsilon is None else f"{epsilon:g}"


def training(state: Path, client: str, epsilon: float | None) -> PreparationStep:
    """Return the demonstration's training of one client, into a folder of its arm."""
    steps = prepare.reward_models(state, _PRESET, _SEED, _THREADS, epsilon=epsilon)
    step = next(step for step in steps if step.makes.parent.name == client)
    folder = state / "arms" / name(epsilon) / client
    return PreparationStep(
        step.title, folder, [str(folder) if part == str(step.makes) else part for part in step.command]
    )


def _audited(state: Path, client: str, epsilon: float | None, shadows: int) -> dict[str, Any]:
    step = training(state, client, epsilon)
    step.run()
    base = str(state / "base") if read_manifest(step.makes).backbone.kind == "vlm" else None
    data = state / "data" / "clients" / client / "prefs.jsonl"
    print(f"{client}, ε {name(epsilon)}", flush=True)
    found = audit(AuditJob(step.makes, data, shadows, base, _SEED), ProgressLines(lambda line: print(line, flush=True)))
    return figures(found)


def figures(found: AuditFindings) -> dict[str, Any]:
    """Return what the tables show of an audit."""
    record, calibration = found.record, found.manifest.calibration
    return {
        "held_out_accuracy": calibration.pair_accuracy,
        "held_out_interval": calibration.pair_accuracy_interval,
        "epsilon_lower": record.statement.epsilon_lower,
        "labels": record.labels.model_dump(mode="json"),
        "best": {attack.unit: _attack(attack) for attack in record.statement.attacks},
        "attacks": [_attack(attack) for attack in record.attacks],
    }


def _attack(attack: MembershipAttack) -> dict[str, Any]:
    return attack.model_dump(mode="json")
