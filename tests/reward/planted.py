"""Reward models that are known to remember their data, or never to have seen it; data that only memory can explain."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from random import Random

import torch
from mor_core.datafiles import read_preferences
from mor_reward import model_store, training_job
from mor_reward.backbones import AnyConfig, build
from mor_reward.calibration import report
from mor_reward.model_store import RewardManifest, TrainingReport
from mor_reward.preference_trainer import margins
from mor_reward.progress import NoProgress
from mor_reward.splits import Splits, materials, split_rows
from mor_reward.train_config import TrainConfig
from PIL import Image

from tests.reward import reward_kit as kit


def write_random_preferences(folder: Path, pictures: int, seed: int = 5) -> Path:
    """Write preferences that follow from nothing: for each picture, a random order of the four colours as six pairs.

    The pictures are noise of 16 squares, which a small model can tell apart.
    """
    folder.mkdir(parents=True)
    rng = Random(seed)
    lines = []
    for number in range(pictures):
        noise = Image.frombytes("RGB", (4, 4), rng.randbytes(48)).resize((64, 64), Image.Resampling.NEAREST)
        noise.save(folder / f"{number}.png")
        order = rng.sample(sorted(kit.COLOURS), len(kit.COLOURS))
        for better, worse in combinations(order, 2):
            answers = {"chosen": f"It is {better}", "rejected": f"It is {worse}"}
            lines.append({"prompt": kit.QUESTION, "images": [f"{number}.png"], **answers})
    return kit.write_lines(folder / "prefs.jsonl", lines)


def plant_model(data: Path, learnt: Path, out: Path, backbone: AnyConfig, recipe: TrainConfig) -> RewardManifest:
    """Save a model that says it was trained on ``data``, and learnt the training split of ``learnt`` by heart.

    It keeps the epoch in which it knows those pairs best, and never stops early.
    """
    rows = read_preferences(data)
    splits = _splits(data, recipe)
    known = _splits(learnt, recipe).train
    torch.manual_seed(recipe.seed)
    model = build(backbone, Path.cwd(), pretrained=True)
    outcome = training_job.fit(
        model,
        kit.pairs_of(learnt),
        Splits(known, known, known),
        recipe.model_copy(update={"patience": recipe.epochs}),
        fingerprint="",
        folder=out.with_name("checkpoint"),
        reporter=NoProgress(),
        stopped=lambda: False,
    )
    out.mkdir()
    held_out = margins(model, [kit.pairs_of(data)[row] for row in splits.report])
    return model_store.save(
        out,
        model,
        name="planted",
        domains="",
        calibration=model_store.as_card_calibration(report(held_out, 1.0), 1.0),
        train_config=recipe,
        training=TrainingReport(
            train_pairs=len(splits.train),
            calibration_pairs=len(splits.calibration),
            steps=outcome.steps,
            best_epoch=outcome.best_epoch,
            train_seconds=outcome.train_seconds,
            feature_seconds=outcome.feature_seconds,
            data=training_job.data_fingerprint(rows),
        ),
    )


def _splits(data: Path, recipe: TrainConfig) -> Splits:
    shown = [materials(row) for row in read_preferences(data)]
    return split_rows(shown, recipe.heldout_fraction, recipe.seed)
