"""Public starts of private trainings: ``python -m three_domains.public_start --out DIR`` writes their data.

A private training learns little from few pictures; it goes on from a model of public data. Here that data is questions
about pictures of the server's split, each with a true and a false answer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from three_domains.build import FileSpec, write_files
from three_domains.prepare import BASE, PARTS, TRAINING_STAGES, PreparationStep, resumption, start_title
from three_domains.sources import SourceError

_DUAL = "--backbone dual-encoder --lr 1e-3 --weight-decay 0.05 --mismatch 1 --epochs 6"
OPTIONS = {
    "detail": f"{_DUAL} --set vision_layers=[-1,-2] --vision parts/efficientnet-lite2 --text parts/minilm",
    "chart": f"{_DUAL} --set vision_layers=[8] --set image_size=168 --vision parts/dinov2-small --text parts/minilm",
    "medical": "--backbone vlm --set likelihood=0.3 --lr 2e-4 --epochs 2 --model base",
}
"""Training options of the starts by client, with checkpoints below the state folder."""
FILES = (FileSpec("public", "{domain}/prefs.jsonl", "server", "preference", 420, 4, contrasts=1.0),)


def folder(state: Path, client: str) -> Path:
    """Return the folder of a client's start."""
    return state / "starts" / client


def train_options(state: Path, client: str) -> list[str]:
    """Return the options of a private training that goes on from a client's start."""
    return ["--start", str(folder(state, client)), "--dp-public", str(state / "public" / client / "prefs.jsonl")]


def steps(state: Path, seed: int, threads: int) -> list[PreparationStep]:
    """List the steps that make the starts, after those of ``prepare.steps``."""
    data = state / "public"
    command = [sys.executable, "-m", "three_domains.public_start", "--out", str(data), "--seed", str(seed)]
    questions = PreparationStep("public questions", data, command, cores=2, work=40, stages=(("pictures", 1.0),))
    made = [questions]
    for client, options in OPTIONS.items():
        out = folder(state, client)
        given = [str(state / part) if part == "base" or part.startswith("parts/") else part for part in options.split()]
        train = [str(Path(sys.executable).with_name("mor-reward")), "train", "--threads", str(threads)]
        files = ["--data", str(data / client / "prefs.jsonl"), "--out", str(out)]
        needs = (questions.title, BASE if str(state / "base") in given else PARTS)
        title, command = start_title(client), [*train, *files, *given, *resumption(out)]
        made.append(PreparationStep(title, out, command, needs, threads, 120, TRAINING_STAGES))
    return made


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures and answers")
    arguments = parser.parse_args()
    try:
        write_files(arguments.out, FILES, sorted(OPTIONS), arguments.seed)
    except (SourceError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
