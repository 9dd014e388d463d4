"""Training processes that die by SIGKILL at a chosen point of their work.

They are forked from a server that has the libraries loaded, so that a test can afford many of them.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mor_trainer.config import WorkerSettings
from mor_trainer.run.worker import TrainingWorker


@dataclass(frozen=True)
class FatalPoint:
    """Moment at which a process dies: before or after a call of a method."""

    method: str
    """``module.Class.method`` below ``mor_trainer``."""
    when: Literal["before", "after"]
    call: int = 1
    """Number of the call."""


def work(environment: Mapping[str, str], point: FatalPoint) -> None:
    """Train runs and die at ``point``; a lease that was lost on a slow machine is claimed again."""
    torch.set_num_threads(1)
    path, class_name, method_name = point.method.rsplit(".", 2)
    owner = getattr(importlib.import_module(f"mor_trainer.{path}"), class_name)
    method = getattr(owner, method_name)
    calls = 0

    def die(moment: str) -> None:
        if (moment, calls) == (point.when, point.call):
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(method)
    def fatal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        die("before")
        result = method(*args, **kwargs)
        die("after")
        return result

    setattr(owner, method_name, fatal)
    settings = {name.removeprefix("MOR_").lower(): value for name, value in environment.items() if name[:4] == "MOR_"}
    TrainingWorker(WorkerSettings.model_validate(settings)).work()


def work_until_death(environment: Mapping[str, str], point: FatalPoint, timeout_s: float) -> None:
    """Run a process that dies at ``point``, and wait for its death."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mor_trainer.run.worker", "transformers"])
    process = context.Process(target=work, args=(dict(environment), point))
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"not reached within {timeout_s:g} s: {point}")
    assert process.exitcode == -signal.SIGKILL, (point, process.exitcode)
