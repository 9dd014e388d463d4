"""Work that is many independent jobs, on all cores: a process each with one thread.

Small models gain little from a second thread, and threads that wait for each other lose much on a busy machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch


def executor(cores: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"  # numpy's linear algebra reads it as a process begins, and never again
    return ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_begin)


def run_all(jobs: Iterable[Callable[[], object]], cores: int) -> None:
    """``cores`` jobs at a time, begun in their order."""
    with executor(cores) as workers:
        for job in [workers.submit(job) for job in jobs]:
            job.result()


def _begin() -> None:
    torch.set_num_threads(1)
    os.environ["TERM"] = "dumb"  # progress bars of two commands would overwrite each other
