"""Scores of every group by every model, computed once and stored, so that arms are compared in seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mor_core.datafiles import Prompt, read_preferences, read_prompts
from mor_core.wire import Message, image_hashes
from mor_reward import model_store
from mor_reward.backbones import Backbone, Example, Picture
from mor_reward.model_store import RewardManifest
from mor_reward.scoring_engine import ScoringEngine
from mor_router.embedding import GateInput, build_embedder
from three_domains.questions import Gold

from quality.group_scores import GroupScores, ResponseFeatures, Rewards
from quality.material import read_gold

_BATCH = 128
"""Responses that a reward model scores at a time."""
_FEATURE_BYTES = 6 << 30
"""Size of the feature cache, bytes."""
RESPONSES = "responses.json"


class Group:
    """Question with the responses to score."""

    def __init__(self, prompt: Prompt, responses: Sequence[str]) -> None:
        self.prompt = prompt
        pictures = tuple(Picture(digest, prompt.images[digest]) for digest in image_hashes(prompt.messages))
        self.examples = [Example(prompt.messages, pictures, response) for response in responses]


def groups(folder: Path) -> list[Group]:
    """Read the pairs of ``prefs.jsonl``, or the sampled responses to ``prompts.jsonl``."""
    if (folder / "prefs.jsonl").exists():
        return [Group(row.prompt, (row.chosen, row.rejected)) for row in read_preferences(folder / "prefs.jsonl")]
    sampled = json.loads((folder / RESPONSES).read_text(encoding="utf-8"))
    return [
        Group(prompt, responses)
        for prompt, responses in zip(read_prompts(folder / "prompts.jsonl"), sampled, strict=True)
    ]


def missing(models: Iterable[Path], folders: Sequence[Path], cache: Path) -> list[Callable[[], None]]:
    """Return the jobs that write the missing ``cache/FOLDER/MODEL.npz``, the longest first.

    Models with the same frozen encoders share a job, because they share the features of pictures and texts.
    """
    by_encoders: dict[str, list[Path]] = {}
    for model in models:
        if not all(_file(cache, folder, model).exists() for folder in folders):
            by_encoders.setdefault(_encoder_key(model_store.read_manifest(model), model), []).append(model)
    longest_first = sorted(by_encoders, key=lambda encoders: (encoders != "vlm", -len(by_encoders[encoders])))
    return [partial(_score, by_encoders[encoders], folders, cache) for encoders in longest_first]


def _score(models: Sequence[Path], folders: Sequence[Path], cache: Path) -> None:
    features: dict[str, Backbone] = {}
    engines = {model: open_model(model, features) for model in models}
    for folder in folders:
        items = [group.examples for group in groups(folder)]
        for model, engine in engines.items():
            file = _file(cache, folder, model)
            if file.exists():
                continue
            print(f"scoring {folder.name} by {model.name}", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, scores=scores(engine, items, model.name))


def open_model(model: Path, features: dict[str, Backbone]) -> ScoringEngine:
    """Load the model of a folder. ``features``: a model for each kind of encoders, whose features are shared."""
    manifest, backbone = model_store.load(model)
    encoders = _encoder_key(manifest, model)
    if encoders in features:
        backbone.features = features[encoders].features
    else:
        backbone.use_cache(_FEATURE_BYTES)
        features[encoders] = backbone
    return ScoringEngine(backbone, manifest.temperature, _BATCH)


def scores(engine: ScoringEngine, items: Sequence[Sequence[Example]], name: str) -> Rewards:
    """Score groups of examples.

    Raises:
        RuntimeError: the model cannot score a group.
    """
    found = []
    for outcome in engine.run(items):
        if outcome.scores is None:
            raise RuntimeError(f"{name} cannot score a group: {outcome.detail}")
        found.append(outcome.scores)
    return np.array(found)


def embed(folders: Sequence[Path], cache: Path) -> None:
    """Write the router's embeddings: ``cache/FOLDER/inputs.npz`` of each group's question and picture, and
    ``answers.npz`` of its responses, with their numbers of words."""
    embedder = build_embedder(None, None, 100_000)
    for folder in folders:
        file, answers = (cache / folder.name / f"{name}.npz" for name in ("inputs", "answers"))
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            seen = [GateInput(group.prompt.messages, group.prompt.images) for group in groups(folder)]
            np.savez_compressed(file, inputs=asyncio.run(embedder.inputs(seen)))
        if not answers.exists():
            texts = [[example.response for example in group.examples] for group in groups(folder)]
            said = sorted({text for group in texts for text in group})
            alone = [GateInput((Message(role="user", content=text or " "),), {}) for text in said]
            row = dict(zip(said, asyncio.run(embedder.inputs(alone)), strict=True))
            np.savez_compressed(
                answers,
                embeddings=np.array([[row[text] for text in group] for group in texts]),
                words=np.array([[len(text.split()) for text in group] for group in texts]),
            )


def load(
    folder: Path, cache: Path, clients: Sequence[str], others: Sequence[str], skill: Callable[[Gold], str]
) -> GroupScores:
    """Load the scores of ``folder`` by ``clients``, and by the models that no client serves."""

    with np.load(cache / folder.name / "inputs.npz") as kept:
        inputs = np.asarray(kept["inputs"])
    with np.load(cache / folder.name / "answers.npz") as kept:
        answers = ResponseFeatures(np.asarray(kept["embeddings"]), np.asarray(kept["words"]))
    return GroupScores(
        inputs=inputs,
        scores=np.stack([scores_of(folder, cache, name) for name in clients], axis=1),
        skills=tuple(skill(gold) for gold in read_gold(folder)),
        others={name: scores_of(folder, cache, name) for name in others},
        answers=answers,
    )


def scores_of(folder: Path, cache: Path, name: str) -> Rewards:
    """Load the scores of ``folder`` by one model."""
    with np.load(_file(cache, folder, Path(name))) as kept:
        return np.asarray(kept["scores"])


def _file(cache: Path, folder: Path, model: Path) -> Path:
    return cache / folder.name / f"{model.name}.npz"


def _encoder_key(manifest: RewardManifest, folder: Path) -> str:
    """Return a key of the frozen encoders.

    All VLM clients start from the server's base model; a text-only client has no frozen encoder, and nothing to share.
    """
    config = manifest.backbone
    if config.kind == "text":
        return str(folder)
    if config.kind != "dual-encoder":
        return config.kind
    towers = [(folder / tower / "config.json").read_text(encoding="utf-8") for tower in (config.vision, config.text)]
    return f"{towers} {config.image_size} {config.vision_layers} {config.precision}"
