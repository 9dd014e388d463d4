"""Facts of a run's result for its model card, from the history."""

from __future__ import annotations

from typing import Literal

from mor_core.evaluated_steps import EvaluatedStep

from mor_trainer.control.database import Database
from mor_trainer.control.history import History, read_evaluated, read_steps
from mor_trainer.control.run_rows import readable_row
from mor_trainer.results.model_card import CardFacts

_POINTS = 1000
"""Steps that are read, evenly spaced, for the gate versions and clients of a run."""
Disclosed = Literal["number", "names"]
"""Clients in a card: their number, or their names and shares too."""


def card_facts(
    database: Database, history: History, run: str, step: int | None, *, adapter: bool, disclosed: Disclosed
) -> CardFacts:
    """Return the facts of a run after a step; ``None``: after its last one.

    Raises:
        NotFound: no such run.
        Conflict: the run's row cannot be read.
    """
    spec = readable_row(database, run).spec
    step = spec.steps if step is None else step
    newest = read_steps(
        database.rows(
            "SELECT step, at, data FROM metrics WHERE run=:run AND step<=:step ORDER BY step DESC LIMIT 1",
            run=run,
            step=step,
        )
    )
    last = newest[0] if newest else None
    points = [point for point in history.metrics(run, 0, _POINTS).points if point.step < step] + newest
    took_part = {name for point in points for name in point.clients}
    weights = {name: figures.weight for name, figures in sorted(last.clients.items())} if last is not None else {}
    return CardFacts(
        spec,
        step,
        adapter=adapter,
        run=run,
        at=None if last is None else last.at,
        kl=None if last is None else last.kl,
        reward=None if last is None else last.reward_mean,
        gate_versions=sorted({point.gate_version for point in points if point.gate_version is not None}),
        evaluations=_upto(read_evaluated(database, run), step),
        clients=len(took_part) if points else None,
        client_weights={name: weights.get(name) for name in sorted(took_part)} if disclosed == "names" else {},
    )


def _upto(evaluated: list[EvaluatedStep], step: int) -> list[EvaluatedStep]:
    return [one for one in evaluated if one.step <= step]
