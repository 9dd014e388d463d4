"""Choice of the checkpoint from which a run continues: the newest that is whole and fits the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.stored import StoredEntries

from mor_trainer.update.checkpoint_checksums import has_checksums
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
    """Problem of each newer checkpoint."""


def resume(run_folder: Path, learner: Learner, check_lease: Callable[[], None]) -> Resumption | None:
    """Load the newest good checkpoint of a run on all ranks; ``None`` where the run never had one.

    Newer ones are renamed to ``step-….bad``: a later attempt must not return to their lineage. Where no checkpoint can
    be used, all stay as they are. ``check_lease`` raises where the run belongs to another worker, whose checkpoints
    they are; to read them may take minutes.

    Raises:
        Invalid: there are checkpoints, and none can be used.
    """
    refused: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(run_folder)):
        try:
            state = _load(checkpoint, learner)
        except (Invalid, Unavailable) as error:
            refused[checkpoint] = str(error)
            _CHECKPOINTS.refuse(checkpoint, str(error))
        else:
            log.info("resumed", run=run_folder.name, step=state.step, checkpoint=str(checkpoint))
            check_lease()
            problems = tuple(f"{problem}; {_set_aside(newer)}" for newer, problem in refused.items())
            return Resumption(state, checkpoint, problems)
    for checkpoint in damaged_checkpoints(run_folder)[-1:]:
        refused.setdefault(checkpoint, f"checkpoint {checkpoint} is damaged, and there is no other")
    if refused:
        problem = next(iter(refused.values()))
        raise Invalid(f"{problem}; restore a checkpoint from a backup, or create a new run")
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
