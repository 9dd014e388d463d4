"""Redaction for a client's token: it shows the client's own figures, and none that reveal those of others."""

from __future__ import annotations

from mor_core.auth import Principal, Scope
from mor_core.errors import Forbidden
from mor_core.run_status import SampleGroup
from mor_core.runs import RunSnapshot
from mor_core.step_metrics import StepMetrics

from mor_trainer.control.kubeflow import trainer_status


def sees_all(caller: Principal) -> bool:
    """Return whether the caller may see the figures of all clients."""
    return caller.scope is not Scope.client


def check_sees(caller: Principal, client: str) -> None:
    """Check that the caller may see a client's figures.

    Raises:
        Forbidden: the caller is another client.
    """
    if not sees_all(caller) and caller.name != client:
        raise Forbidden(f"the token of client {caller.name!r} shows its own figures only, not those of {client!r}")


def snapshot(run: RunSnapshot, caller: Principal) -> RunSnapshot:
    """Return the snapshot; for a client, with the progress and the client's own figures of the last step alone."""
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


def samples(found: list[SampleGroup], caller: Principal) -> list[SampleGroup]:
    """Return the samples; for a client, those that it scored, with its own scores alone.

    The fused reward is left out because it reveals the scores of others.
    """
    if sees_all(caller):
        return found
    return [
        sample.model_copy(update={"rewards": None, "advantages": None, "clients": own})
        for sample in found
        if (own := tuple(score for score in sample.clients if score.client == caller.name))
    ]
