"""Choice of the checkpoint from which a run continues: the newest that is whole and fits the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.stored import StoredEntries

from mor_trainer.update.checkpoint_checksums import CheckpointDamaged, has_checksums
from mor_trainer.update.learner import Learner
from mor_trainer.update.loop_checkpoint import LoopState, checkpoints, damaged_checkpoints, read_state, set_aside

_CHECKPOINTS = StoredEntries("checkpoints")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Resumption:
    """Checkpoint from which a run continues."""

    state: LoopState
    checkpoint: Path
    problems: tuple[str, ...]
    """What is wrong with each newer checkpoint."""


def resume(run_folder: Path, learner: Learner) -> Resumption | None:
    """Load the newest good checkpoint of a run on all ranks; ``None`` where the run never had one.

    A damaged one is renamed to ``step-….bad``; one that cannot be read now, or does not fit the run, stays.

    Raises:
        Invalid: there are checkpoints, and none can be used.
    """
    atomic.sweep(run_folder)
    problems = []
    for checkpoint in reversed(checkpoints(run_folder)):
        try:
            state = _load(checkpoint, learner)
        except CheckpointDamaged as error:
            problems.append(f"{error}; {_set_aside(checkpoint)}")
        except (Invalid, Unavailable) as error:
            problems.append(str(error))
        else:
            log.info("resumed", run=run_folder.name, step=state.step, checkpoint=str(checkpoint))
            return Resumption(state, checkpoint, tuple(problems))
        _CHECKPOINTS.refuse(checkpoint, problems[-1])
    damaged = damaged_checkpoints(run_folder)
    if not problems and damaged:
        problems = [f"checkpoint {damaged[-1]} is damaged, and there is no other"]
    if problems:
        raise Invalid(f"{problems[0]}; restore a checkpoint from a backup, or create a new run")
    return None


def _load(checkpoint: Path, learner: Learner) -> LoopState:
    if has_checksums(checkpoint):
        learner.check_checkpoint(checkpoint)
    else:
        log.warning("a checkpoint without checksums, as earlier versions wrote it", checkpoint=str(checkpoint))
    state = read_state(checkpoint)
    learner.restore(checkpoint)
    return state


def _set_aside(checkpoint: Path) -> str:
    try:
        return f"it is kept as {set_aside(checkpoint).name}"
    except OSError as error:
        return f"it cannot be renamed ({describe_failure(error)})"
