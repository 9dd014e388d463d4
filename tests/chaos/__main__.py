"""Command line of the chaos campaign: ``python -m tests.chaos``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tables.faults import kinds

from tests.chaos.campaign import Size, run_seed
from tests.chaos.chaos_report import as_record, write

_INSIDE = "CHAOS_INSIDE"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, each with a fresh cluster")
    parser.add_argument("--first-seed", type=int, default=1, help="first seed; a failing seed replays with --seeds 1")
    parser.add_argument("--faults", type=int, default=200, help="faults of all seeds together")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run")
    parser.add_argument("--workers", type=int, default=3, help="workers; one of them stands by")
    parser.add_argument("--overlap", action="store_true", help="do not wait for the next step between faults")
    parser.add_argument("--only", default="", help="regular expression; keep the kinds of faults in which it occurs")
    parser.add_argument("--older", metavar="REVISION", help="git revision of one worker, one engine and one router")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES", help="watch memory and disk for this long")
    parser.add_argument("--out", type=Path, help="file of the report, JSON")
    parser.add_argument("--logs", type=Path, default=Path(".mor/chaos"), help="folder of the logs of failing seeds")
    options = parser.parse_args()
    _enter_own_namespaces()
    size = Size(
        faults=-(-options.faults // options.seeds),
        steps=options.steps,
        workers=options.workers,
        settle=not options.overlap,
        soak_s=60 * options.soak,
        older=options.older,
        only=options.only,
    )
    began, results = time.monotonic(), []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        found = run_seed(seed, size, say, options.logs / f"seed-{seed}")
        results.append(found)
        say(f"seed {seed}: {len(found.problems)} problems, {found.steps} steps, {len(found.runs)} runs")
        for problem in found.problems:
            say(f"  {problem}")
        if found.problems:
            say(f"  logs: {options.logs / f'seed-{seed}'}; replay: {replay(seed, size)}")
    record = as_record(results, time.monotonic() - began)
    print(kinds(record))
    if options.out is not None:
        write(options.out, record)
    return 1 if any(result.problems for result in results) else 0


def replay(seed: int, size: Size) -> str:
    """Return the command that repeats a seed."""
    only = f" --only '{size.only}'" if size.only else ""
    older = f" --older {size.older}" if size.older else ""
    overlap = "" if size.settle else " --overlap"
    return (
        f"python -m tests.chaos --seeds 1 --first-seed {seed} --faults {size.faults} --steps {size.steps} "
        f"--workers {size.workers}{only}{older}{overlap}"
    )


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _enter_own_namespaces() -> None:
    """Start again in namespaces of this process, which need no root: the small disk and all processes end with it."""
    if _INSIDE in os.environ or shutil.which("unshare") is None:
        return
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0:
        arguments = [*inside, sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        os.execvpe(arguments[0], arguments, {**os.environ, _INSIDE: "1"})


if __name__ == "__main__":
    sys.exit(main())
