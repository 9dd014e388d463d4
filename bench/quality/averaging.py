"""Federated averaging (FedAvg) of the reward model of clients that share an architecture.

McMahan et al. 2017: in each round every client trains the common weights on its own pairs, and the server takes
their mean, weighted by the number of pairs. All rounds run in this one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from mor_core import atomic
from mor_core.datafiles import read_preferences
from mor_reward import calibration, model_store
from mor_reward.backbones import AnyConfig, Backbone, build
from mor_reward.bradley_terry import bradley_terry_loss
from mor_reward.model_store import TrainingReport
from mor_reward.preference_trainer import PreferencePair, margins
from mor_reward.splits import materials, split_rows
from mor_reward.train_config import TrainConfig
from torch import Tensor

ROUNDS = 4
"""Rounds of averaging, each of one local epoch."""
_FEATURE_BYTES = 4 << 30
"""Size of the feature cache, bytes: that of a training."""


def average(files: Sequence[Path], config: AnyConfig, train_config: TrainConfig, out: Path, name: str) -> None:
    """Train on the pairs of ``files`` by federated averaging and write the model folder ``out``.

    One local epoch per round; synthetic pairs from mismatched pictures as in the clients' own training.
    """
    torch.manual_seed(train_config.seed)
    backbone = build(config, Path.cwd(), pretrained=True)
    backbone.use_cache(_FEATURE_BYTES)
    trains: list[list[PreferencePair]] = []
    held_out: list[list[PreferencePair]] = [[], []]
    for file in files:
        rows = read_preferences(file)
        pairs = [PreferencePair.of(row) for row in rows]
        splits = split_rows([materials(row) for row in rows], train_config.heldout_fraction, train_config.seed)
        trains.append([pairs[row] for row in splits.train])
        for part, numbers in zip(held_out, (splits.calibration, splits.report), strict=True):
            part.extend(pairs[row] for row in numbers)
    for _ in backbone.precompute_features([pair.chosen for pairs in trains for pair in pairs]):
        pass
    common, total = _weights(backbone), sum(map(len, trains))
    for number in range(ROUNDS):
        mean = {key: torch.zeros_like(value) for key, value in common.items()}
        for client, pairs in enumerate(trains):
            _load(backbone, common)
            _epoch(backbone, pairs, train_config, f"{train_config.seed}/{number}/{client}")
            for key, value in _weights(backbone).items():
                mean[key] += value * (len(pairs) / total)
        common = mean
    _load(backbone, common)
    temperature = calibration.fit_temperature(margins(backbone, held_out[0]))
    report = calibration.report(margins(backbone, held_out[1]), temperature)
    with atomic.folder(out, replace=False) as folder:
        model_store.save(
            folder,
            backbone,
            name=name,
            domains="",
            calibration=model_store.as_card_calibration(report, temperature),
            train_config=train_config,
            training=TrainingReport(
                train_pairs=total,
                calibration_pairs=len(held_out[0]),
                steps=0,
                best_epoch=ROUNDS,
                train_seconds=0.0,
                feature_seconds=0.0,
            ),
        )


def round_bytes(model: Path) -> int:
    """Return the bytes that a client sends in a round, and receives as many: the trained parameters.

    Frozen encoders are never sent, because every client has them.
    """
    _, backbone = model_store.load(model)
    return sum(value.numel() * value.element_size() for value in _weights(backbone).values())


def sent_bytes(model: Path) -> int:
    """Return the bytes that a client sent to average a model, in all rounds, and received as many."""
    return ROUNDS * round_bytes(model)


def _epoch(backbone: Backbone, pairs: Sequence[PreferencePair], train_config: TrainConfig, seed: str) -> None:
    rng = Random(seed)
    others: dict[str, list[str]] = {}
    for pair in pairs:
        others.setdefault(pair.question, []).append(pair.chosen.response)
    optimiser: Any = torch.optim.AdamW(
        [parameter for parameter in backbone.parameters() if parameter.requires_grad],
        lr=train_config.lr,
        weight_decay=train_config.weight_decay,
    )
    backbone.train()
    order = rng.sample(pairs, len(pairs))
    for start in range(0, len(order), train_config.batch_size):
        batch = order[start : start + train_config.batch_size]
        elsewhere = [
            type(pair.chosen)(pair.chosen.messages, pair.chosen.pictures, other)
            for pair in batch
            for other in rng.choices(others[pair.question], k=train_config.mismatch)
        ]
        scores = backbone([*(pair.chosen for pair in batch), *(pair.rejected for pair in batch), *elsewhere])
        chosen, rejected, made_up = scores.split([len(batch), len(batch), len(elsewhere)])
        loss = bradley_terry_loss(chosen, rejected, train_config.centring)
        if elsewhere:
            loss = loss + bradley_terry_loss(chosen.repeat_interleave(train_config.mismatch), made_up)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    backbone.eval()


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in backbone.named_parameters() if value.requires_grad}


def _load(backbone: Backbone, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in backbone.named_parameters():
            if value.requires_grad:
                value.copy_(weights[key])
