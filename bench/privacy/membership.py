"""Membership attacks on a reward model of the demonstration, trained with or without differential privacy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from mor_core.datafiles import read_preferences
from mor_reward import model_store
from mor_reward.audit.audit_job import AuditJob, audit
from mor_reward.audit_record import AuditRecord, read_record
from mor_reward.model_store import read_manifest
from mor_reward.preference_trainer import PreferencePair
from mor_reward.progress import ProgressLines
from mor_reward.scoring_engine import ScoringEngine
from mor_reward.splits import materials, split_rows
from quality.group_scores import agreement
from quality.scoring import scores
from tables.privacy import NO_PRIVACY
from three_domains import prepare, public_start
from three_domains.prepare import PreparationStep

from privacy import unseen

SHADOWS, QUICK_SHADOWS = 16, 8
PRESET, SEED = "default", 0
"""Demonstration that the models and data are of."""
_THREADS = 1
_BATCH = 128


def arm(epsilon: float | None) -> str:
    """Name of a training in the results."""
    return NO_PRIVACY if epsilon is None else f"{epsilon:g}"


def measure(state: Path, client: str, epsilon: float | None, shadows: int) -> dict[str, Any]:
    """Train one client's model as the demonstration does, unless it exists, and audit it.

    The audit has as many further non-members as the client has pairs (``unseen``). A model that as many shadows have
    audited already is not audited again.
    """
    model = train(state, client, epsilon)
    manifest = read_manifest(model)
    record = read_record(model, manifest.version)
    if record is None or record.shadows != shadows:
        data = state / "data" / "clients" / client / "prefs.jsonl"
        base = str(state / "base") if manifest.backbone.kind == "vlm" else None
        public = None
        if _starts(state, client, epsilon):
            base, public = str(public_start.folder(state, client)), state / "public" / client / "prefs.jsonl"
        progress = ProgressLines(lambda line: print(f"{client}, ε {arm(epsilon)}: {line}", flush=True))
        further = unseen.pairs(state, client, SEED)
        record = audit(AuditJob(model, data, shadows, base, public, SEED, unseen=further), progress).record
    return {**_figures(record), "held_out": _held_out(state, client, model)}


def folder(state: Path, client: str, epsilon: float | None) -> Path:
    """Return the folder of a client's model; of one with an ε, a folder of its own."""
    return (state / "clients" if epsilon is None else state / f"dp{epsilon:g}") / client / "model"


def train(state: Path, client: str, epsilon: float | None) -> Path:
    """Train one client's model as the demonstration does, unless it exists; return its folder."""
    torch.set_num_threads(_THREADS)
    step = _training(state, client, epsilon)
    for before in [*prepare.steps(state, PRESET, SEED), *_starts(state, client, epsilon)]:
        if before.title != prepare.BASE or str(before.makes) in step.command:
            before.run()
    step.run()
    return step.makes


def _starts(state: Path, client: str, epsilon: float | None) -> list[PreparationStep]:
    if epsilon is None or client not in public_start.OPTIONS:
        return []
    return public_start.steps(state, SEED, _THREADS)


def _training(state: Path, client: str, epsilon: float | None) -> PreparationStep:
    """Return the demonstration's training of one client; with an ε, into a folder of its own."""
    if epsilon is None:
        return _step_of(prepare.reward_models(state, PRESET, SEED, _THREADS), client)
    starts = {name: public_start.train_options(state, name) for name in public_start.OPTIONS}
    trainings = prepare.reward_models(state, PRESET, SEED, _THREADS, epsilon=epsilon, starts=starts)
    step = _step_of(trainings, client)
    own = folder(state, client, epsilon)
    command = [str(own) if part == str(step.makes) else part for part in step.command]
    return dataclasses.replace(step, makes=own, command=command)


def _step_of(steps: list[PreparationStep], client: str) -> PreparationStep:
    return next(step for step in steps if step.makes.parent.name == client)


def _held_out(state: Path, client: str, model: Path) -> dict[str, Any]:
    """Count the held-out pairs that a model ranks as labelled. The accuracy on a private model's card has noise."""
    manifest, backbone = model_store.load(model)
    rows = read_preferences(state / "data" / "clients" / client / "prefs.jsonl")
    splits = split_rows([materials(row) for row in rows], manifest.recipe.heldout_fraction, manifest.recipe.seed)
    pairs = [PreferencePair.of(rows[row]) for row in (*splits.calibration, *splits.report)]
    engine = ScoringEngine(backbone, manifest.temperature, _BATCH)
    right = agreement(scores(engine, [[pair.chosen, pair.rejected] for pair in pairs], client))
    return {"pairs": len(pairs), "accuracy": float(right.mean())}


def _figures(record: AuditRecord) -> dict[str, Any]:
    attacks = [attack.model_dump(mode="json") for attack in record.attacks]
    return {
        "shadows": record.shadows,
        "audited": str(record.statement.date),
        "epsilon_lower": record.statement.epsilon_lower,
        "labels": record.labels.model_dump(mode="json"),
        "best": {attack.unit: attack.model_dump(mode="json") for attack in record.statement.attacks},
        "attacks": attacks,
    }
