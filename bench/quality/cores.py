"""Execution of independent jobs on all cores: one process with one thread each.

Small models gain little from a second thread, and waiting threads lose much time on a busy machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch


def executor(cores: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"  # numpy's linear algebra reads it once, at the start of a process
    return ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_begin)


def run_all(jobs: Iterable[Callable[[], object]], cores: int) -> None:
    """Run the jobs, ``cores`` at a time, started in order."""
    with executor(cores) as workers:
        for job in [workers.submit(job) for job in jobs]:
            job.result()


def _begin() -> None:
    torch.set_num_threads(1)
    os.environ["TERM"] = "dumb"  # progress bars of concurrent commands overwrite each other
