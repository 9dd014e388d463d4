"""Choice of the place from which a run continues: the newest checkpoint that is whole, or its beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.stored import StoredEntries

from mor_trainer.run_files import checkpoints, damaged_checkpoints, step_of
from mor_trainer.update.checkpoint_checksums import DamagedCheckpoint, has_checksums
from mor_trainer.update.learner import Learner
from mor_trainer.update.loop_checkpoint import LoopState, read_state, set_aside

_CHECKPOINTS = StoredEntries("checkpoints")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Resumption:
    """Place from which a run continues."""

    state: LoopState
    checkpoint: Path
    problems: tuple[str, ...]
    """Problem of each newer checkpoint."""


@dataclass(frozen=True)
class Restart:
    """Beginning of a run anew."""

    problems: tuple[str, ...] = ()
    """Problem of each checkpoint; none where the run never had one."""


def resume(run_folder: Path, learner: Learner, check_lease: Callable[[], None], *, redo: int) -> Resumption | Restart:
    """Load the newest good checkpoint of a run on all ranks, or begin it anew.

    Newer ones are renamed to ``step-….bad``: a later attempt must not return to their lineage. Where all are damaged,
    the run begins anew if the newest was at most ``redo`` steps in: a younger run has no older checkpoint than its
    beginning. Else all stay as they are. ``check_lease`` raises where the run belongs to another worker, whose
    checkpoints they are; to read them may take minutes.

    Raises:
        Invalid: there are checkpoints, none can be used, and the run must not begin anew.
    """
    refused: dict[Path, Exception] = {}
    for checkpoint in reversed(checkpoints(run_folder)):
        try:
            state = _load(checkpoint, learner)
        except (Invalid, Unavailable) as error:
            refused[checkpoint] = error
            _CHECKPOINTS.refuse(checkpoint, str(error))
        else:
            log.info("resumed", run=run_folder.name, step=state.step, checkpoint=str(checkpoint))
            check_lease()
            return Resumption(state, checkpoint, _set_all_aside(refused))
    earlier = damaged_checkpoints(run_folder)[-1:]
    if not refused and not earlier:
        return Restart()
    damaged = all(isinstance(error, DamagedCheckpoint) for error in refused.values())
    if damaged and max(map(step_of, [*refused, *earlier])) <= redo:
        check_lease()
        return Restart(_set_all_aside(refused))
    for checkpoint in earlier:
        refused.setdefault(checkpoint, Invalid(f"checkpoint {checkpoint} is damaged, and there is no other"))
    problem = next(iter(refused.values()))
    raise Invalid(f"{problem}; restore a checkpoint from a backup, or create a new run")


def _load(checkpoint: Path, learner: Learner) -> LoopState:
    if has_checksums(checkpoint):
        learner.check_checkpoint(checkpoint)
    else:
        log.warning("a checkpoint without checksums, as earlier versions wrote it", checkpoint=str(checkpoint))
    state = read_state(checkpoint)
    learner.restore(checkpoint)
    return state


def _set_all_aside(refused: Mapping[Path, Exception]) -> tuple[str, ...]:
    return tuple(f"{problem}; {_set_aside(checkpoint)}" for checkpoint, problem in refused.items())


def _set_aside(checkpoint: Path) -> str:
    try:
        return f"it is kept as {set_aside(checkpoint).name}"
    except OSError as error:
        return f"it cannot be renamed ({describe_failure(error)})"
