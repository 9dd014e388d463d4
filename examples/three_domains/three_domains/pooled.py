"""Supervised reference on pooled data: ``python -m three_domains.pooled --data DIR --base MODEL --out MODEL``.

It tunes the base VLM on the chosen answers of all clients, which privacy forbids in practice. No part of MoR reads the
clients' folders in this way; the benchmark compares with it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from three_domains.assembly import save
from three_domains.base_vlm import read_rows
from three_domains.tuning import TuningConfig, encoder_features, pack, tune

RECIPE = TuningConfig(epochs=3, rate=3e-4, decoder_rate=3e-4, muon=False)


def tune_on_pooled(data: Path, base: Path, out: Path, seed: int) -> None:
    """Write the tuned checkpoint ``out`` (which must not exist).

    Raises:
        FileExistsError: ``out`` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    rows = []
    for folder in sorted((data / "clients").iterdir()):
        for row in read_rows(folder / "prefs.jsonl"):
            rows.append({**row, "images": [str(folder / row["images"][0])], "completion": row["chosen"]})
    torch.manual_seed(seed)
    processor = Idefics3Processor.from_pretrained(base)
    model = Idefics3ForConditionalGeneration.from_pretrained(base)
    pictures, packed = pack(rows, processor)
    features = encoder_features(model, processor, [Path(name) for name in pictures])
    tune(model, packed, features, RECIPE, seed)
    save(model, processor, out)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder written by three_domains.build")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint written by three_domains.base_vlm")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        tune_on_pooled(arguments.data, arguments.base, arguments.out, arguments.seed)
    except FileExistsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
