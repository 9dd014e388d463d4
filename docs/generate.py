"""Write the parts of documentation and dashboard that follow from code and measurements: ``python docs/generate.py``.

Whole files, or the part of a page between two markers; a test fails when one is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path += [str(DOCS), str(ROOT / "bench")]

from generators import access, contract, layouts, metrics, routes, settings, step_metrics, variables  # noqa: E402
from tables import (  # noqa: E402
    answer,
    averaging,
    containers,
    copies,
    demonstration,
    experiment,
    faults,
    first_run,
    hidden_scores,
    hostile,
    images,
    limited_answers,
    load,
    on_gpu,
    other_trainers,
    overview,
    polling,
    private_accuracy,
    private_demonstration,
    private_models,
    prompt_sets,
    quarantine,
    recognition,
    requirements,
    situational,
    soak,
    trainer,
    upstreams,
    whole_loop,
)

_BEGIN, _END = "<!-- written by docs/generate.py -->\n", "<!-- end of what docs/generate.py wrote -->\n"


def _within(file: Path, parts: Sequence[Callable[[], str]]) -> str:
    """Return the text of ``file`` with each of ``parts`` between the next pair of markers."""
    done, rest = "", file.read_text()
    for part in parts:
        before, begun, rest = rest.partition(_BEGIN)
        _, ended, rest = rest.partition(_END)
        if not begun or not ended:
            raise SystemExit(
                f"{file} needs {len(parts)} pairs of the lines {_BEGIN.strip()} and {_END.strip()}: add them"
            )
        done += f"{before}{_BEGIN}\n{part()}\n{_END}"
    return done + rest


_PARTS: dict[Path, Sequence[Callable[[], str]]] = {
    ROOT / "README.md": (requirements, averaging, demonstration),
    DOCS / "data-files.md": (layouts.table, prompt_sets),
    DOCS / "client-guide.md": (upstreams,),
    DOCS / "client-lifecycle.md": (recognition, quarantine, hostile, situational),
    DOCS / "experiment.md": (answer, overview),
    DOCS / "experiment-appendix.md": (experiment,),
    DOCS / "first-run.md": (first_run,),
    DOCS / "hidden-scores.md": (hidden_scores,),
    DOCS / "installation.md": (images, containers),
    DOCS / "integrations.md": (other_trainers,),
    DOCS / "operating.md": (faults, soak, load),
    DOCS / "privacy.md": (limited_answers, copies, private_demonstration, private_models, private_accuracy),
    DOCS / "status.md": (step_metrics.table, polling),
    DOCS / "training.md": (trainer, on_gpu, whole_loop),
    DOCS / "reward-contract.md": (contract.clauses,),
    DOCS / "security.md": (access.tables,),
}
PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "settings.md": settings.page,
    DOCS / "metrics.md": metrics.page,
    DOCS / "routes.md": routes.page,
    ROOT / "packages" / "mor_core" / "mor_core" / "known_variables.py": variables.module,
    ROOT / "services" / "trainer" / "dashboard" / "src" / "step_metrics.ts": step_metrics.typescript,
    **{file: partial(_within, file, parts) for file, parts in _PARTS.items()},
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        file.write_text(page())
