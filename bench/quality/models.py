"""Reward models of the experiment: one per client by ``mor-reward train``, and those on pooled data."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from three_domains.prepare import PreparationStep

from quality.population import Population, SimulatedClient, Start

AVERAGED, ANCHORED, CENTRAL = "averaged", "anchored", "central"
OTHERS = (AVERAGED, ANCHORED, CENTRAL)


def training(name: str, data: Path, out: Path, how: Sequence[str]) -> PreparationStep:
    """Return the step that trains a reward model as a client does; it resumes an interrupted training."""
    command = [str(Path(sys.executable).with_name("mor-reward")), "train"]
    paths = ["--data", str(data), "--out", str(out), "--name", name, "--threads", "1"]
    again = ["--resume"] if out.with_name(f"{out.name}.training").exists() else []
    return PreparationStep(f"reward model {name}", out, [*command, *paths, *how, *again])


def client_training(population: Population, client: SimulatedClient, state: Path, start: Start) -> PreparationStep:
    how = population.options(client.architecture, client.epochs, start)
    return training(client.name, state / "clients" / client.name / "prefs.jsonl", state / "models" / client.name, how)


def pool(state: Path, clients: Sequence[SimulatedClient]) -> Path:
    """Pool all clients' preference files, which privacy forbids in practice."""
    folder = state / "pooled"
    if not folder.exists():
        scratch = folder.with_name(".pooled")
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "images").mkdir(parents=True)
        rows = []
        for client in clients:
            source = state / "clients" / client.name
            for image in (source / "images").iterdir():
                shutil.copy(image, scratch / "images")
            own = [json.loads(line) for line in (source / "prefs.jsonl").read_text(encoding="utf-8").splitlines()]
            rows += [row | {"id": f"{client.name}/{row['id']}"} for row in own]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (scratch / "prefs.jsonl").write_text(text, encoding="utf-8")
        scratch.rename(folder)
    return folder / "prefs.jsonl"
