"""Opening of a run's prompts: checked before the first step, and the same rows again where a checkpoint continues."""

from __future__ import annotations

from pathlib import Path

from anyio.from_thread import BlockingPortal
from mor_core.runs import Claim

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.preflight import Preflight
from mor_trainer.prompts.run_limits import run_limits
from mor_trainer.prompts.run_prompts import RunPrompts, open_files
from mor_trainer.prompts.stored_checks import read_run_checks
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease
from mor_trainer.update import loop_checkpoint


def open_run_prompts(
    settings: WorkerSettings,
    claim: Claim,
    run_folder: Path,
    *,
    portal: BlockingPortal,
    lease: RunLease,
    interruption: Interruption,
) -> RunPrompts:
    """Check the prompts of a run and open them; a run with a checkpoint continues without, on the same rows.

    Raises:
        RunInterrupted: run control stopped the run, or the process must end.
        RunLeaseLost: the run belongs to another worker.
        Invalid: prompts cannot be used.
    """

    def obey(rows: int = 0) -> None:
        interruption.obey(lambda: None)

    if loop_checkpoint.checkpoints(run_folder):  # groups have numbers, which the rows left out at first fix
        files = open_files(settings, claim.spec, obey)
    else:
        limits = run_limits(claim.spec, portal.call(lease.engines))
        files = Preflight(
            settings, claim.run, claim.spec, run_folder, limits=limits, report=lease.report_preflight, obey=obey
        ).run()
    return RunPrompts.of(claim.run, claim.spec, files, read_run_checks(run_folder))
