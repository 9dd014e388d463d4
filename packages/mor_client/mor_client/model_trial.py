"""Trial of a model's family by the trainer's own code, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mor_client.output import err


class ModelTrial:
    """Trial that goes on beside the check of the rows."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def begin(cls, model: str) -> ModelTrial | None:
        """Start the trial; where the trainer is not installed, say so and return ``None``."""
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = shutil.which("mor-trainer", path=places)
        if command is None:
            err.print("the model's family is not tried: mor-trainer is not installed here", highlight=False)
            return None
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started: subprocess.Popen[str] = subprocess.Popen([command, "try-model", model], text=True, **pipes)  # noqa: S603
        return cls(started)

    def problem(self) -> str | None:
        """Wait for the end of the trial, and return why the family cannot be trained, if it cannot."""
        told, _ = self._process.communicate()
        if self._process.returncode == 0:
            return None
        lines = [line for line in told.splitlines() if line.startswith(("training with", "mor-trainer:"))]
        return "\n".join(lines) or f"the trial of the model's family ended with status {self._process.returncode}"

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
