"""Opening of a run's prompts: checked before the first step, and the same rows again where a checkpoint continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from anyio.from_thread import BlockingPortal
from mor_core.prompt_index import PromptSet
from mor_core.prompt_sources import PromptFile
from mor_core.runs import Claim, RunSpec

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.preflight import Preflight
from mor_trainer.prompts.prompt_hashes import check_unchanged
from mor_trainer.prompts.run_limits import run_limits
from mor_trainer.prompts.run_prompts import RunPrompts, open_files
from mor_trainer.prompts.source_prompts import training_prompts
from mor_trainer.prompts.stored_checks import read_run_checks
from mor_trainer.run.disk_wait import DiskWait
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.loop_checkpoint import LoopState


def open_run_prompts(
    settings: WorkerSettings,
    claim: Claim,
    run_folder: Path,
    staging: Path,
    *,
    portal: BlockingPortal,
    lease: RunLease,
    interruption: Interruption,
    disk: DiskWait,
) -> RunPrompts:
    """Check the prompts of a run and open them; a run with a checkpoint continues without, on the same rows.

    Where the result of its check is damaged or gone, the check is made again.

    Raises:
        RunInterrupted: run control stopped the run, or the process must end.
        RunLeaseLost: the run belongs to another worker.
        Invalid: prompts cannot be used.
    """
    preflight = Preflight(
        settings, claim.run, claim.spec, run_folder,
        limits=run_limits(claim.spec, portal.call(lease.engines)),
        report=lease.report_preflight, obey=lambda: interruption.obey(lambda: None),
        when_room=disk.write, staging=staging,
    )  # fmt: skip

    known = read_run_checks(run_folder)
    state = loop_checkpoint.newest_state(run_folder)

    def read(give_up: Callable[[], None]) -> dict[PromptFile, PromptSet]:
        def follow(rows: int) -> None:
            give_up()
            preflight.report_reading(rows)

        return open_files(settings, claim.spec, follow, known if state is not None else None)

    # Other runs may wait for an index that this one builds.
    files = disk.write("the index of the prompts", lambda: interruption.obey_by_repeating(read))
    if state is not None:
        check_unchanged(files, state.prompts, known)
    # Groups have numbers, which the rows left out at first fix.
    if state is not None and (known is not None or _left_out_none(claim.spec, files, state)):
        preflight.report_known(files, known)
    else:
        known = preflight.run(files)
    return RunPrompts.of(claim.run, claim.spec, files, known)


def _left_out_none(spec: RunSpec, files: Mapping[PromptFile, PromptSet], state: LoopState) -> bool:
    """Return whether a run draws from all rows of its files, as each run does of a version without the check."""
    unreadable = any(prompts.problems for prompts in files.values())
    return not unreadable and len(training_prompts(spec, files, {})) == state.ledger.prompts
