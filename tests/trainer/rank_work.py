"""Work of a rank in the tests: training on given groups, without queue server and run control.

As a script, started by torchrun: ``rank_work.py CASES.json OUT``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.disk_full import DiskFull
from mor_core.errors import Invalid
from mor_core.prompt_index import open_prompts
from mor_core.runs import RunSpec
from mor_trainer.config import WorkerSettings
from mor_trainer.groups.ledger import Ledger
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.ranks import Ranks, exit_rank
from mor_trainer.update.learner import GroupsUnusable, Learner, follow_leader
from mor_trainer.update.loop_checkpoint import LoopState
from safetensors.torch import save_file

from tests.small_files import largest_file
from tests.trainer.records import order_of

CPU = torch.device("cpu")


def train(case: dict[str, Any], out: Path, ranks: Ranks) -> None:
    """Restore, train, save and export as ``case`` describes; write tensors, reports and errors to ``out``."""
    spec = RunSpec.model_validate(case["spec"])
    folder = out / case["name"]
    folder.mkdir()
    try:
        assert spec.prompts is not None
        prompts = SourcePrompts.of_file(open_prompts(Path(spec.prompts), index_dir=out / "index"))
        learner = Learner.lead(WorkerSettings(device="cpu"), spec, folder, ranks, prompts)
        if case.get("restore"):
            learner.check_checkpoint(Path(case["restore"]))
            learner.restore(Path(case["restore"]))
    except Invalid as error:
        (out / f"{case['name']}.error").write_text(str(error))
        return
    reports = []
    if spoiled := case.get("spoiled"):  # a picture that only the rank that owns its group reads
        (Path(spec.prompts).parent / spoiled).write_bytes(b"another one")
        with pytest.raises(GroupsUnusable) as raised:
            learner.update([training_group_of(group) for group in case["steps"][0]], 1)
        (out / f"{case['name']}.unusable").write_text(json.dumps(raised.value.reasons))
        del case["steps"][0]
    for step, groups in enumerate(case["steps"], case.get("first", 1)):
        report = learner.update([training_group_of(group) for group in groups], step)
        reports.append(dataclasses.asdict(report))
        if case.get("save_after") == step:
            for largest in case.get("without_room", ()):  # of rank 0, as on a full disk; the others wait for it
                with largest_file(largest), pytest.raises(DiskFull):
                    learner.save(state_at(step, spec))
                assert not list((folder / "checkpoints").iterdir()), "nothing of the checkpoint is there"
            learner.save(state_at(step, spec))
    copies = {name: tensor.detach().contiguous() for name, tensor in learner.gather().items()}
    save_file(copies, out / f"{case['name']}.safetensors")
    sizes = [(getattr(p, "_local_tensor", p).numel(), p.numel()) for p in learner.policy.trainable.values()]
    held = sum(local for local, _ in sizes) / sum(whole for _, whole in sizes)
    (out / f"{case['name']}.json").write_text(json.dumps({"reports": reports, "held": held}))
    learner.export(folder / "final")


def state_at(step: int, spec: RunSpec) -> LoopState:
    ledger = Ledger[None]("r", order_of(12), 0, 3).state()
    return LoopState(step=step, weights_version=step, gate_version=None, ledger=ledger, client_failures={}, spec=spec)


def training_group_of(fields: dict[str, Any]) -> TrainingGroup:
    """A group from its JSON."""
    sequences = {name: tuple(map(tuple, fields[name])) for name in ("responses", "engine_logprobs")}
    return TrainingGroup(fields["prompt"], fields["prompt_tokens"], **sequences, rewards=tuple(fields["rewards"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    joined = Ranks.join(CPU)
    if joined.leads:
        for one in json.loads(Path(sys.argv[1]).read_text()):
            train(one, Path(sys.argv[2]), joined)
        joined.broadcast(None)
    else:
        follow_leader(WorkerSettings(device="cpu"), joined)
    joined.leave()
    exit_rank(0)
