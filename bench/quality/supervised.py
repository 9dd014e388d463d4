"""Supervised tuning of the base model on the preferred answers of the anchors alone.

Its divergence from the base model is measured on its own samples, KL(π‖π₀) = E_π[log π(y) − log π₀(y)], for the
comparison with the optima of ``optimum``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mor_reward.backbones import VlmConfig, build
from three_domains.base_vlm import read_rows
from three_domains.questions import Answers
from three_domains.tuning import TuningConfig, encoder_features, pack, tune
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from quality import sampling, scoring
from quality.material import read_gold
from quality.truth import correctness

_RECIPE = TuningConfig(epochs=6, batch=8, rate=3e-4, decoder_rate=3e-4, muon=False)
_SAMPLES = 16
"""Samples of each prompt, by which correctness and KL are measured."""
_RESULT = "supervised.json"


@dataclass(frozen=True)
class Tuned:
    """Figures of the tuned policy, means over prompts and samples."""

    kl: float
    """KL to the base model, nats per response."""
    correct: float
    """Share of correct answers."""


def measure(base: Path, answers: Mapping[str, Answers], anchors: Path, prompts: Path, out: Path, threads: int) -> Tuned:
    """Tune on the pairs in ``anchors``, answer the questions in ``prompts``, and store the figures in ``out``."""
    if not (out / _RESULT).exists():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(prompts, out, ignore=shutil.ignore_patterns(scoring.RESPONSES))
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            model = Path(scratch) / "model"
            _tune(base, anchors, model)
            sampling.sample(model, out, _SAMPLES, threads)
            ratio = _log_likelihoods(model, out) - _log_likelihoods(base, out)
        right = correctness(answers, read_gold(out), scoring.groups(out))
        (out / _RESULT).write_text(json.dumps(asdict(Tuned(float(ratio.mean()), float(right.mean())))))
    return Tuned(**json.loads((out / _RESULT).read_text()))


def _tune(base: Path, anchors: Path, out: Path) -> None:
    rows = [
        {**row, "images": [str(anchors / row["images"][0])], "completion": [{"content": row["chosen"]}]}
        for row in read_rows(anchors / "prefs.jsonl")
    ]
    torch.manual_seed(0)
    processor = Idefics3Processor.from_pretrained(base)
    model = Idefics3ForConditionalGeneration.from_pretrained(base)
    pictures, packed = pack(rows, processor)
    tune(model, packed, encoder_features(model, processor, [Path(name) for name in pictures]), _RECIPE, seed=0)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _log_likelihoods(model: Path, folder: Path) -> np.ndarray:
    """Compute log π(y) of each response, as the score of a reward model whose head is still zero."""
    backbone = build(VlmConfig(model=str(model), likelihood=1.0, precision="float32"), Path.cwd(), pretrained=True)
    backbone.eval()
    return np.array([backbone.score(group.examples).double().tolist() for group in scoring.groups(folder)])
