"""What a client's own token shows of a run: its own figures, nobody else's, and none that tell of the others."""

from __future__ import annotations

from mor_core.auth import Principal, Scope
from mor_core.errors import Forbidden
from mor_core.run_status import Sample
from mor_core.runs import RunSnapshot
from mor_core.step_metrics import StepMetrics

from mor_trainer.control.kubeflow import trainer_status


def sees_all(caller: Principal) -> bool:
    return caller.scope is not Scope.client


def check_sees(caller: Principal, client: str) -> None:
    """
    Raises:
        Forbidden: a client asks for another one.
    """
    if not sees_all(caller) and caller.name != client:
        raise Forbidden(f"token of client {caller.name!r} shows its own figures only, not those of {client!r}")


def snapshot(run: RunSnapshot, caller: Principal) -> RunSnapshot:
    """Progress of the run, with the caller's own figures of the last step alone."""
    if sees_all(caller):
        return run
    own = {} if run.metrics is None else {n: f for n, f in run.metrics.clients.items() if n == caller.name}
    return run.model_copy(
        update={
            "model": "",
            "final": None,
            "error": None,
            "evaluation": None,
            "metrics": None if run.metrics is None else StepMetrics(clients=own),
            "trainer_status": trainer_status(
                progress=run.progress, eta_s=run.eta_s, metrics=None, updated_at=run.updated_at
            ),
        }
    )


def samples(found: list[Sample], caller: Principal) -> list[Sample]:
    """Groups that the caller scored, with its own scores alone: the fused reward would tell of the others'."""
    if sees_all(caller):
        return found
    return [
        sample.model_copy(update={"rewards": None, "advantages": None, "clients": own})
        for sample in found
        if (own := tuple(score for score in sample.clients if score.client == caller.name))
    ]
