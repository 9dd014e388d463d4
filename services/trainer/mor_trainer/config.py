"""Settings of the run-control process and of the training process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.settings import ControlCallerSettings, ServiceSettings, Settings, StreamSettings
from pydantic import Field


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


class WorkerSettings(ControlCallerSettings, StreamSettings, RunsSettings):
    """The training process: ``mor-trainer work``."""

    control_url: str = "http://127.0.0.1:8300"
    """Address of run control, as this process reaches it."""
    weights_url: str | None = None
    """Address of run control as the rollout service reaches it; ``control_url`` when unset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained; ``auto`` takes CUDA where there is one."""
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
    poll_s: float = Field(2.0, gt=0)
    """Seconds between questions for a queued run."""
    heartbeat_s: float = Field(2.0, gt=0)
    """Seconds between heartbeats; also how soon pause and stop are heard."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` for machines, ``console`` for people, ``auto``: console on a terminal and JSON elsewhere."""
