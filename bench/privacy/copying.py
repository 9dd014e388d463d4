"""Copies of a reward model, trained on its answers: how many groups it takes, and what limits do to it.

The attacker is a router that knows the model's architecture and its public encoders, and nothing of its data. It asks
about pictures of the server, with groups of the answers that the server's own tuning data has for the same question. A
copy is the same network with new weights, trained to give the same centred scores within a group.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from mor_core.datafiles import read_preferences
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from mor_reward import model_store
from mor_reward.backbones import Backbone, DualEncoderConfig, Example, Picture
from mor_reward.backbones.dual_encoder import DualEncoder
from mor_reward.preference_trainer import PreferencePair, margins
from mor_reward.splits import materials, split_rows
from numpy import ndarray

from privacy.limited_forms import FORMS, answered

CLIENTS = ("detail", "chart")
"""Clients with dual encoders, whose copies train in minutes."""
GROUP = 8
_BATCH = 16
"""Groups of a step."""
_RATE = 1e-3
_SCORED_AT_ONCE = 256
_FEATURE_BYTES = 4 << 30
_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class CopySize:
    """Size of the measurement."""

    pictures: int
    """Pictures that the router asks about."""
    curve: Sequence[int]
    """Groups that it asks."""
    limited: int
    """Groups that it asks where the answers are limited; one of ``curve``."""
    held_out: int
    """Groups about other pictures, by which copies are judged."""
    pairs: int
    """Held-out preference pairs of the client."""
    epochs: int
    least_steps: int
    """Steps of the smallest training."""
    limits: Sequence[str]


_LIMITS = ("4 bits", "2 bits", "ranks", "noise 1", "noise 4")
SIZES = {
    "full": CopySize(500, (100, 500, 1000, 2000), 1000, 400, 360, 5, 150, _LIMITS),
    "quick": CopySize(80, (40, 240), 240, 60, 120, 4, 60, ("4 bits", "ranks", "noise 1", "noise 4")),
}


def measure(state: Path, client: str, size: CopySize) -> dict[str, Any]:
    """Return the fidelity of copies of a client's model, by number of groups and by limit on the answers."""
    folder = state / "clients" / client / "model"
    manifest, teacher = model_store.load(folder)
    if not isinstance(teacher, DualEncoder) or not isinstance(manifest.backbone, DualEncoderConfig):
        raise SystemExit(f"{folder} is no dual encoder, whose copies train in minutes; give --clients detail or chart")
    teacher.use_cache(_FEATURE_BYTES)
    questions = _questions(state / "data" / "server", client)
    groups = _groups(questions, size.pictures, max(size.curve) + size.held_out, size.held_out)
    asked, held_out = groups[: max(size.curve)], groups[max(size.curve) :]
    rows = read_preferences(state / "data" / "clients" / client / "prefs.jsonl")
    splits = split_rows([materials(row) for row in rows], manifest.recipe.heldout_fraction, manifest.recipe.seed)
    pairs = [PreferencePair.of(rows[row]) for row in (*splits.calibration, *splits.report)[: size.pairs]]
    temperature = manifest.temperature
    truth, judged = (_scores(teacher, part) / temperature for part in (asked, held_out))
    labels = margins(teacher, pairs)
    common = {"teacher_accuracy": _accuracy(labels), "spread": float(np.abs(np.diff(judged[:, :2])).mean())}
    print(f"{client}: the model's own accuracy {common['teacher_accuracy']:.3f}", flush=True)

    def copied(count: int, limit: str) -> dict[str, Any]:
        targets = answered(FORMS[limit], truth[:count], seed=1)
        copy = _train(folder, teacher, asked[:count], targets, size)
        found = _scores(copy, held_out)
        figures = {
            "groups": count,
            "answers": limit,
            "agreement": _agreement(found, judged),
            "spearman": _spearman(found, judged),
            "accuracy": _accuracy(margins(copy, pairs)),
        }
        print(json.dumps(figures), flush=True)
        return figures

    curve = [copied(count, "as they are") for count in size.curve]
    limits = [copied(size.limited, limit) for limit in size.limits]
    return {"group": GROUP, "pictures": size.pictures, **common, "curve": curve, "limits": limits}


def _questions(server: Path, domain: str) -> list[tuple[str, str, str]]:
    """Return picture file, question and answer of the server's tuning rows of a domain."""
    found = []
    for line in (server / "sft.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["domain"] == domain:
            question = row["prompt"][0]["content"][1]["text"]
            found.append((str(server / row["images"][0]), question, row["completion"][0]["content"]))
    return found


def _groups(questions: Sequence[tuple[str, str, str]], pictures: int, count: int, held_out: int) -> list[list[Example]]:
    """Make groups; the last ``held_out`` are about pictures of their own, a quarter as many as of the others."""
    random = Random(0)
    answers: dict[str, list[str]] = defaultdict(list)
    for _, question, answer in questions:
        answers[question] = answers[question] if answer in answers[question] else [*answers[question], answer]
    answers = {question: found for question, found in answers.items() if len(found) >= GROUP}
    files = list(dict.fromkeys(file for file, _, _ in questions))
    random.shuffle(files)
    apart = max(2, pictures // 4)
    if len(files) < pictures + apart:
        raise SystemExit(f"the server has {len(files)} pictures of this domain, wanted {pictures + apart}")
    known = {file: Picture(sha256(content := Path(file).read_bytes()), content) for file in files[: pictures + apart]}
    groups: list[list[Example]] = []
    while len(groups) < count:
        last = len(groups) >= count - held_out
        file = random.choice(files[pictures : pictures + apart] if last else files[:pictures])
        question = random.choice(sorted(answers))
        responses = random.sample(answers[question], GROUP)
        parts = (ImagePart.of(known[file].sha256), TextPart(text=question))
        message = (Message(role="user", content=parts),)
        groups.append([Example(message, (known[file],), response) for response in responses])
    return groups


def _scores(model: Backbone, groups: Sequence[Sequence[Example]]) -> Float[ndarray, "groups size"]:
    model.eval()
    examples = [example for group in groups for example in group]
    parts = [model.score(examples[at : at + _SCORED_AT_ONCE]) for at in range(0, len(examples), _SCORED_AT_ONCE)]
    return np.asarray(torch.cat(parts).double().numpy().reshape(-1, GROUP))


def _train(
    folder: Path,
    teacher: DualEncoder,
    groups: Sequence[Sequence[Example]],
    targets: Float[ndarray, "groups size"],
    size: CopySize,
) -> DualEncoder:
    """Train a new fusion head on the public encoders to give the answered scores, up to each group's level."""
    torch.manual_seed(1)
    _, copy = model_store.load(folder)
    assert isinstance(copy, DualEncoder)
    for module in copy.fusion.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    torch.nn.init.zeros_(copy.fusion.head.weight)
    for place in (copy.fusion.place, copy.fusion.nothing, copy.fusion.slots):
        torch.nn.init.normal_(place, std=0.05)
    copy.features = teacher.features
    wanted = torch.tensor(targets - targets.mean(axis=1, keepdims=True), dtype=torch.float32)
    wanted = wanted / wanted.std()
    steps = max(size.least_steps, size.epochs * len(groups) // _BATCH)
    optimiser = torch.optim.AdamW(copy.fusion.parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps, pct_start=_WARM_UP)
    order = _order(len(groups), steps)
    copy.train()
    for rows in order:
        batch = [example for row in rows for example in groups[row]]
        scores = copy.forward(batch).view(len(rows), GROUP)
        loss = torch.nn.functional.mse_loss(scores - scores.mean(dim=1, keepdim=True), wanted[rows])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(copy.fusion.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return copy


def _order(groups: int, steps: int) -> Int[ndarray, "steps batch"]:
    random = np.random.default_rng(2)
    batch = min(_BATCH, groups)
    passes = -(-steps * batch // groups)
    return np.concatenate([random.permutation(groups) for _ in range(passes)])[: steps * batch].reshape(steps, batch)


def _agreement(found: Float[ndarray, "groups size"], truth: Float[ndarray, "groups size"]) -> float:
    """Return the share of pairs within a group that both rank alike."""
    one, other = np.triu_indices(GROUP, 1)
    return float((np.sign(found[:, one] - found[:, other]) == np.sign(truth[:, one] - truth[:, other])).mean())


def _spearman(found: Float[ndarray, "groups size"], truth: Float[ndarray, "groups size"]) -> float:
    """Return the mean rank correlation within a group."""
    places = [scores.argsort(axis=1).argsort(axis=1) for scores in (found, truth)]
    distance = ((places[0] - places[1]) ** 2).sum(axis=1)
    return float((1 - 6 * distance / (GROUP * (GROUP**2 - 1))).mean())


def _accuracy(found: Float[ndarray, " pairs"]) -> float:
    return float((found > 0).mean())
