"""The notebooks of ``examples/notebooks`` run from their first cell to the last, with real services on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUN = """
import ast, json, sys
scope = {"__name__": "__main__"}
for place, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]), f"cell {place}")
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {place}", "exec"), scope)
    if last is not None and (shown := eval(compile(last, f"cell {place}", "eval"), scope)) is not None:
        print(shown._repr_html_() if hasattr(shown, "_repr_html_") else repr(shown))
"""
"""Script in place of a Jupyter kernel: it runs the cells in one namespace, and shows the value of a last line."""
SAID = {
    "enrol_a_reward_model.ipynb": ["all clauses are kept", ">Enrolled<", ">Gate<", ">GroupResult<"],
    "reward_a_trainer.ipynb": ["TRL is not installed" if find_spec("trl") is None else "3 steps were rewarded"],
}


def test_each_notebook_is_known_here() -> None:
    assert {path.name for path in NOTEBOOKS} == set(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert cell["id"] and not cell["metadata"]
        assert cell["cell_type"] != "code" or (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOR_")}
    packages = os.pathsep.join([str(FOLDER), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": packages, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in SAID[path.name]:
        assert text in done.stdout, done.stdout
    assert not [*tmp_path.glob("mor-notebook-*")], "the notebook ends what it began"
