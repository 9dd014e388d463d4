"""Ctrl-C while a program still loads its libraries: no traceback, and the status that shells expect."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAMS = ("mor_client", "mor_reward", "mor_rollout", "mor_router", "mor_trainer")
START = """
import importlib.abc, os, runpy, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == library:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
program, library = sys.argv[1:]
sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["--help"]
runpy.run_module(program, run_name="__main__")
"""


@pytest.mark.parametrize("library", ["typer", "rich", "a library that is never loaded"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_loads_ends_it_quietly(program: str, library: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, program, library], capture_output=True, text=True, timeout=200, check=False
    )
    loaded = " " not in library
    assert (done.returncode, done.stderr) == (130 if loaded else 0, ""), done.stderr
    assert ("Usage" in done.stdout) != loaded
