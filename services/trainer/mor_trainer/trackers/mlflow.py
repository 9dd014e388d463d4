"""MLflow tracker: a run of one experiment for each run, with its settings as parameters."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from mor_core.errors import Invalid
from mor_core.runs import RunSpec, RunState

_STATUS = {RunState.finished: "FINISHED", RunState.failed: "FAILED", RunState.stopped: "KILLED"}
_TAG = "mor.run"
_LOST = "mor.lost_after_step"
_PARAMETERS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_VALUE_CHARACTERS = 500
"""Limits that servers of every version accept."""


class MLflow:
    """Tracker that writes to an MLflow server or store."""

    name = "mlflow"

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        """
        Raises:
            Invalid: the library is not installed.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise Invalid("MOR_MLFLOW_TRACKING_URI is set without mlflow; install mor-trainer[mlflow], or unset it")
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._client: Any = None
        self._ids: dict[str, str] = {}

    def begin(self, run: str, spec: RunSpec) -> None:
        """Find MLflow's run by its tag, or create it with the settings as parameters."""
        client = self._connected()
        found = client.get_experiment_by_name(self._experiment)
        experiment = client.create_experiment(self._experiment) if found is None else found.experiment_id
        known = client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run}'", max_results=1)
        if known:
            client.update_run(known[0].info.run_id, status="RUNNING")
            self._ids[run] = known[0].info.run_id
            return
        made = client.create_run(experiment, run_name=run, tags={_TAG: run}).info.run_id
        from mlflow.entities import Param

        parameters = (Param(name, value[:_VALUE_CHARACTERS]) for name, value in _flat("", spec.model_dump(mode="json")))
        while batch := list(islice(parameters, _PARAMETERS_AT_ONCE)):
            client.log_batch(made, params=batch)
        self._ids[run] = made

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        metrics = (Metric(name, value, round(at * 1000), step) for name, value in figures.items())
        while batch := list(islice(metrics, _METRICS_AT_ONCE)):
            self._connected().log_batch(self._ids[run], metrics=batch)

    def rewind(self, run: str, step: int) -> None:
        """Tag the run with the step after which figures are lost: MLflow cannot delete them."""
        if step:
            self._connected().set_tag(self._ids[run], _LOST, str(step))

    def end(self, run: str, state: RunState) -> None:
        self._connected().set_terminated(self._ids.pop(run), _STATUS[state], end_time=round(time.time() * 1000))

    def _connected(self) -> Any:
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # runs are private
            # The address of the run that MLflow prints at its end has the user and password of the server.
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._tracking_uri)
        return self._client


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the settings by dotted name, without those that are null."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)
