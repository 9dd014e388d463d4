"""Builder of the demonstration's base VLM: ``python -m three_domains.base_vlm --data DIR --out MODEL``.

Image encoder: DINOv2-S. Language model: a small Llama trained here (``--preset default``) or SmolLM2-135M (``--preset
small``). The result is an Idefics3 checkpoint that ``transformers`` and vLLM load. It is mediocre on purpose, but
well-formed: its tuning targets mix complete, partial, vague, hedged and false answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from three_domains.assembly import ModelShape, build_model, build_processor, save, train_tokenizer
from three_domains.image_encoder import standardise
from three_domains.smollm2 import load_smollm2
from three_domains.sources import SourceError
from three_domains.tuning import TuningConfig, encoder_features, pack, tune


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    """Return every question and answer of ``sft.jsonl`` rows, and the chat frame, for training a tokenizer."""
    questions = [part["text"] for row in rows for part in row["prompt"][0]["content"] if part["type"] == "text"]
    return [*questions, *(row["completion"][0]["content"] for row in rows), "user\nassistant\nsystem\n"]


@dataclass(frozen=True)
class Preset:
    """Shape and tuning of a base model; ``pretrained`` uses SmolLM2 as the language model."""

    shape: ModelShape
    config: TuningConfig
    pretrained: bool


PRESETS = {
    "default": Preset(ModelShape(), TuningConfig(), pretrained=False),
    "small": Preset(
        ModelShape(), TuningConfig(epochs=1, batch=8, rate=1e-3, decoder_rate=3e-4, muon=False), pretrained=True
    ),
}


def make_base(data: Path, out: Path, seed: int, preset: Preset) -> None:
    """Write the tuned checkpoint ``out`` (which must not exist) from ``data/server/sft.jsonl``.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: ``data`` has no ``server/sft.jsonl``.
        SourceError: the encoder's weights are not available.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    rows = read_rows(data / "server/sft.jsonl")
    torch.manual_seed(seed)
    if preset.pretrained:
        tokenizer, language = load_smollm2()
    else:
        tokenizer, language = train_tokenizer(texts(rows), preset.shape.vocabulary), None
    processor = build_processor(tokenizer, preset.shape)
    model = build_model(tokenizer, preset.shape, language)
    names, packed = pack(rows, processor)
    features = encoder_features(model, processor, [data / "server" / name for name in names])
    norm = model.model.vision_model.post_layernorm
    standardise(norm, features)
    features = features * norm.weight.detach() + norm.bias.detach()
    tune(model, packed, features, preset.config, seed)
    save(model, processor, out)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with server/sft.jsonl and its pictures")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write; must not exist")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="default",
        help="language model: a small new one (quarter of an hour), or SmolLM2-135M (hours on few cores)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and order")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # on saving, transformers warns about defaults of its own that the model does not use
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        make_base(arguments.data, arguments.out, arguments.seed, PRESETS[arguments.preset])
    except (SourceError, FileExistsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
