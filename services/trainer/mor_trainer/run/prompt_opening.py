"""Opening of a run's prompts: checked before the first step, and the same rows again where a checkpoint continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anyio.from_thread import BlockingPortal
from mor_core.prompt_index import PromptSet
from mor_core.prompt_sources import PromptFile
from mor_core.runs import Claim

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.preflight import Preflight
from mor_trainer.prompts.run_limits import run_limits
from mor_trainer.prompts.run_prompts import RunPrompts, open_files
from mor_trainer.prompts.stored_checks import has_run_checks, read_run_checks
from mor_trainer.run.disk_wait import DiskWait
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease
from mor_trainer.update import loop_checkpoint


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

    Where the result of its check is damaged, the check is made again.

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
    # Groups have numbers, which the rows left out at first fix. A run of a version without the check left out none.
    unharmed = known is not None or not has_run_checks(run_folder)
    continues = unharmed and bool(loop_checkpoint.checkpoints(run_folder))

    def read(give_up: Callable[[], None]) -> dict[PromptFile, PromptSet]:
        def follow(rows: int) -> None:
            give_up()
            preflight.report_reading(rows)

        return open_files(settings, claim.spec, follow, known if continues else None)

    # Other runs may wait for an index that this one builds.
    files = disk.write("the index of the prompts", lambda: interruption.obey_by_repeating(read))
    if continues:
        preflight.report_known(files, known)
    else:
        known = preflight.run(files)
    return RunPrompts.of(claim.run, claim.spec, files, known)
