"""Settings of the run-control process and of the training process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.settings import ControlCallerSettings, ServiceSettings, Settings, StreamSettings
from pydantic import AnyHttpUrl, Field, SecretStr


class RunsSettings(Settings):
    """Where runs are kept; the same folder for both processes."""

    runs_dir: Path = Path("runs")
    """Folder of all runs: checkpoints, weights, final checkpoints and the history. Shared by both processes."""


class ControlSettings(ServiceSettings, StreamSettings, RunsSettings):
    """Run control, status API and weight files: ``mor-trainer serve``."""

    run_lease_s: float = Field(60.0, gt=0)
    """Seconds without a heartbeat after which a run goes to another worker and resumes from its last checkpoint."""
    sse_heartbeat_s: float = Field(15.0, gt=0)
    """Seconds between comments on an idle event stream, so that proxies keep it open."""
    samples_kept: int = Field(200, ge=1)
    """Newest sample groups that are kept for each run."""
    events_kept: int = Field(20_000, ge=100)
    """Newest events that are kept for each run for readers that reconnect; metrics are kept for ever."""
    letters_kept: int = Field(1000, ge=1)
    """Newest dead letters that are kept for each run."""
    max_event_readers: int = Field(256, ge=1)
    """Most open event streams; further ones are answered 503 with Retry-After."""
    router_url: AnyHttpUrl | None = None
    """Address of the router, which is asked who a client's own token belongs to, and for the state of clients; without,
    only tokens of the tokens file are known here."""
    router_ca_file: Path | None = None
    """PEM file of certificate authorities for a router served by HTTPS; the system's where it is not set."""
    alert_webhook_url: AnyHttpUrl | None = None
    """Address that is told of each alert, as JSON by POST; nobody is told without."""
    alert_webhook_token: SecretStr = SecretStr("")
    """Bearer token that is sent to the webhook."""
    alert_webhook_timeout_s: float = Field(10.0, gt=0)
    """Seconds that the webhook has to answer."""
    alert_webhook_attempts: int = Field(8, ge=1)
    """Attempts to tell the webhook of one alert."""
    alert_webhook_retry_s: float = Field(5.0, gt=0)
    """Mean seconds until the second attempt, doubled at each further one, ten minutes at most, and jittered."""
    alert_webhook_per_minute: int = Field(30, ge=1)
    """Most attempts of all alerts in a minute; further ones wait."""
    tensorboard_dir: Path | None = None
    """Folder of TensorBoard's event files, one below it for each run; needs ``mor-trainer[tensorboard]``."""
    mlflow_tracking_uri: str | None = None
    """Address of an MLflow tracking server that runs are told to; needs ``mor-trainer[mlflow]``. The library reads
    credentials from its own ``MLFLOW_TRACKING_*`` variables."""
    mlflow_experiment: str = Field("mor", min_length=1)
    """Experiment in MLflow that gets the runs; made where it is missing."""
    tracker_queue: int = Field(1000, ge=1)
    """Most figures that wait for each tracker; the oldest give way."""


class WorkerSettings(ControlCallerSettings, StreamSettings, RunsSettings):
    """The training process: ``mor-trainer work``."""

    control_url: str = "http://127.0.0.1:8300"
    """Address of run control, as this process reaches it."""
    weights_url: str | None = None
    """Address of run control as the rollout service reaches it; ``control_url`` when unset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained; ``auto`` takes CUDA where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products; parameters, their update and the softmax over the vocabulary stay float32. ``auto``:
    bfloat16 on an accelerator that has it, float32 on CPU, where log-probabilities must match the engine's."""
    torch_threads: int = Field(1, ge=1)
    """CPU threads of tensor operations; all services of a machine share its cores."""
    feature_cache_bytes: int = Field(1 << 30, ge=0)
    """Most bytes of image features and encoded prompts that are kept between steps."""
    group_timeout_s: float = Field(120.0, gt=0)
    """Seconds after which a group that did not come back is issued again."""
    group_attempts: int = Field(5, ge=1)
    """Issues of one group after which it is dropped, with an alert."""
    stall_timeout_s: float = Field(1800.0, gt=0)
    """Seconds without a single scored group after which the run fails instead of waiting on."""
    publication_timeout_s: float = Field(300.0, gt=0)
    """Seconds in which a version's weight files must have been written; the run fails then."""
    transfer_engines: tuple[str, ...] = ()
    """Addresses of all rollout services, each with ``MOR_WEIGHT_TRANSFER=nccl``, to whose GPUs new full weights are
    broadcast through vLLM's weight-transfer API (extra ``nccl``); files are published all the same and pulled where the
    broadcast failed. Its contract is tested over gloo on CPUs; ``nccl`` was NOT TESTED ON HARDWARE."""
    transfer_address: str = "127.0.0.1"
    """Address of this process as the engines of ``transfer_engines`` reach it, on any free port."""
    transfer_timeout_s: float = Field(120.0, gt=0)
    """Seconds in which each call of a broadcast must be answered; then it counts as failed."""
    poll_s: float = Field(2.0, gt=0)
    """Seconds between questions for a queued run."""
    heartbeat_s: float = Field(2.0, gt=0)
    """Seconds between heartbeats; also how soon pause and stop are heard."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` for machines, ``console`` for people, ``auto``: console on a terminal and JSON elsewhere."""
