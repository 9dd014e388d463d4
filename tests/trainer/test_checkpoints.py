"""Damaged checkpoints: each kind is found before it is used, named and set aside, and an older one is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mor_core.errors import Invalid
from mor_core.prompt_index import open_prompts
from mor_core.runs import RunSpec
from mor_core.wire import EventRecord
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import event_id
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.ranks import Ranks
from mor_trainer.run_files import checkpoints, damaged_checkpoints
from mor_trainer.update.learner import Learner
from mor_trainer.update.resumption import Restart, Resumption, resume
from mor_trainer.weights.version_files import newest_version, weights_folder

from tests.trainer.kit import make_spec
from tests.trainer.rank_work import state_at

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def run_spec(tiny: Path, prompts: Path) -> RunSpec:
    return make_spec(tiny, prompts, keep_checkpoints=2)


@pytest.fixture(scope="module")
def written(run_spec: RunSpec, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learner]:
    """A run's folder with checkpoints of the steps 2 and 4, in which each parameter is the step."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    rows = SourcePrompts.of_file(open_prompts(prompts, index_dir=folder / "index"))
    learner = Learner.lead(WorkerSettings(device="cpu"), run_spec, folder, Ranks(torch.device("cpu")), rows)
    for step in (2, 4):
        fill(learner, step)
        learner.save(state_at(step, run_spec))
    return folder, learner


@pytest.fixture
def run(written: tuple[Path, Learner], tmp_path: Path) -> tuple[Path, Learner]:
    """A copy of the folder, and the learner."""
    folder = tmp_path / "r"
    shutil.copytree(written[0] / "checkpoints", folder / "checkpoints")
    written[1]._run_folder = folder
    return folder, written[1]


def fill(learner: Learner, value: float) -> None:
    with torch.no_grad():
        for parameter in learner.policy.trainable.values():
            parameter.fill_(value)


def holds(learner: Learner, value: float) -> bool:
    return all(bool((parameter == value).all()) for parameter in learner.policy.trainable.values())


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(len(content)).randrange(len(content))] ^= 1 << 3
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def add_file(file: Path) -> None:
    shutil.copy(file, file.with_name(f"0{file.name}"))


KINDS: dict[str, Damage] = {
    "flipped": flip,
    "truncated": truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "added": add_file,
}
FILES = ("state.json", "checksums.json", "shard-*.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", FILES)
def test_a_run_continues_from_the_newest_checkpoint_that_is_whole(
    run: tuple[Path, Learner], kind: str, pattern: str
) -> None:
    folder, learner = run
    newest = folder / "checkpoints" / "step-00000004"
    KINDS[kind](next(newest.glob(pattern)))
    fill(learner, 0)
    resumption = resume(folder, learner, lambda: None, redo=0)
    assert isinstance(resumption, Resumption)
    assert (resumption.state.step, resumption.checkpoint.name) == (2, "step-00000002")
    assert holds(learner, 2)
    (problem,) = resumption.problems
    assert str(newest) in problem
    assert problem.endswith("it is kept as step-00000004.bad")
    assert [path.name for path in damaged_checkpoints(folder)] == ["step-00000004.bad"]


def test_without_a_good_checkpoint_the_run_fails_again_and_again(run: tuple[Path, Learner]) -> None:
    folder, learner = run
    older, newer = checkpoints(folder)
    for checkpoint in (older, newer):
        truncate(checkpoint / "state.json")
    for _ in range(2):
        with pytest.raises(Invalid, match=r"step-00000004.*restore a checkpoint from a backup"):
            resume(folder, learner, lambda: None, redo=0)
    assert checkpoints(folder) == [older, newer], "nothing is renamed"
    shutil.rmtree(older)
    newer.rename(folder / "checkpoints" / "step-00000004.bad")
    with pytest.raises(Invalid, match=r"step-00000004\.bad is damaged, and there is no other; restore"):
        resume(folder, learner, lambda: None, redo=0)
    shutil.rmtree(folder / "checkpoints")
    assert resume(folder, learner, lambda: None, redo=0) == Restart()


def test_a_young_run_whose_checkpoints_are_all_damaged_begins_anew(
    run: tuple[Path, Learner], run_spec: RunSpec
) -> None:
    """It never had an older one than its beginning. The learner still has the weights of the start."""
    folder, learner = run
    fill(learner, 0)
    older, newer = checkpoints(folder)
    flip(next(older.glob("shard-*")))
    (newer / "checksums.json").unlink()
    with pytest.raises(Invalid, match="restore a checkpoint from a backup"):
        resume(folder, learner, lambda: None, redo=3)
    restart = resume(folder, learner, lambda: None, redo=4)
    assert isinstance(restart, Restart)
    assert [problem[-17:] for problem in restart.problems] == ["step-00000004.bad", "step-00000002.bad"]
    assert holds(learner, 0)
    assert not checkpoints(folder)
    assert resume(folder, learner, lambda: None, redo=4) == Restart(), "so does a second attempt"
    learner.save(state_at(6, run_spec))
    assert isinstance(resume(folder, learner, lambda: None, redo=4), Resumption)


def test_a_checkpoint_that_is_damaged_twice_is_kept_twice(run: tuple[Path, Learner], run_spec: RunSpec) -> None:
    folder, learner = run
    for _ in range(2):
        learner.save(state_at(6, run_spec))
        flip(checkpoints(folder)[-1] / "state.json")
        resume(folder, learner, lambda: None, redo=0)
    assert [path.name[-5:] for path in damaged_checkpoints(folder)] == ["6.bad", "bad-2"]


def test_a_later_attempt_does_not_return_to_a_lineage_that_was_left(run: tuple[Path, Learner]) -> None:
    """A file that cannot be read for a while counts like a damaged one."""
    folder, learner = run
    state = folder / "checkpoints" / "step-00000004" / "state.json"
    state.rename(state.with_name("elsewhere"))
    resume(folder, learner, lambda: None, redo=0)
    moved = folder / "checkpoints" / "step-00000004.bad" / "elsewhere"
    moved.rename(moved.with_name("state.json"))
    resumption = resume(folder, learner, lambda: None, redo=0)
    assert isinstance(resumption, Resumption)
    assert resumption.state.step == 2


def test_damaged_checkpoints_are_kept_like_good_ones(run: tuple[Path, Learner], run_spec: RunSpec) -> None:
    folder, learner = run
    for step in (6, 8, 10):
        learner.save(state_at(step, run_spec))
        flip(checkpoints(folder)[-1] / "state.json")
        resume(folder, learner, lambda: None, redo=0)
    learner.save(state_at(12, run_spec))
    assert [path.name[-6:] for path in damaged_checkpoints(folder)] == ["08.bad", "10.bad"]
    assert [path.name[-2:] for path in checkpoints(folder)] == ["04", "12"]


def make_old(checkpoint: Path) -> None:
    """Make a checkpoint one of an earlier version."""
    (checkpoint / "checksums.json").unlink()
    state = json.loads((checkpoint / "state.json").read_text())
    for name in ("checksummed", "events"):
        del state[name]
    (checkpoint / "state.json").write_text(json.dumps(state))


DAMAGES: dict[str, Damage] = {
    "truncated": truncate,
    "a tensor is missing": lambda file: file.write_bytes(file.read_bytes().replace(b"rng", b"rnh")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_of_an_earlier_version_is_read(run: tuple[Path, Learner], damage: str) -> None:
    folder, learner = run
    for checkpoint in checkpoints(folder):
        make_old(checkpoint)
    fill(learner, 0)
    resumption = resume(folder, learner, lambda: None, redo=0)
    assert isinstance(resumption, Resumption)
    assert resumption.state.step == 4
    assert holds(learner, 4)
    DAMAGES[damage](next(resumption.checkpoint.glob("shard-*")))
    resumption = resume(folder, learner, lambda: None, redo=0)
    assert isinstance(resumption, Resumption)
    assert resumption.state.step == 2
    assert holds(learner, 2)
    assert [path.name for path in damaged_checkpoints(folder)] == ["step-00000004.bad"]


def test_checkpoints_of_another_model_stay(run: tuple[Path, Learner]) -> None:
    folder, learner = run
    name, parameter = learner.policy.trainable.popitem()
    try:
        with pytest.raises(Invalid, match="tensors do not fit the model"):
            resume(folder, learner, lambda: None, redo=0)
    finally:
        learner.policy.trainable[name] = parameter
    assert not damaged_checkpoints(folder)


def test_untold_events_come_back_with_the_checkpoint(run: tuple[Path, Learner], run_spec: RunSpec) -> None:
    folder, learner = run
    events = [
        EventRecord(run="r", group_id=event_id(1, 7), stamps={"trainer": 1.5}, kind="step", step=6, data={"kl": 0.1})
    ]
    learner.save(state_at(6, run_spec).model_copy(update={"events": events}))
    resumption = resume(folder, learner, lambda: None, redo=0)
    assert isinstance(resumption, Resumption)
    assert resumption.state.events == events


def test_versions_continue_above_all_that_an_engine_may_have(tmp_path: Path) -> None:
    assert newest_version(tmp_path, [None]) == -1
    assert newest_version(tmp_path, [None, 7]) > 7 + 20, "the files of later versions may be gone as well"
    for version in (3, 9):
        (weights_folder(tmp_path) / str(version)).mkdir(parents=True)
    assert newest_version(tmp_path, [7, None]) == 9
    assert newest_version(tmp_path, [9, 4]) == 9
    assert newest_version(tmp_path, [10, 2**53]) > 10 + 20
