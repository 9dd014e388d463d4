"""Settings of run control and of the training process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.proxies import ProxyAddress
from mor_core.run_storage import PushPlace
from mor_core.settings import ControlCallerSettings, LoggedSettings, ServiceSettings, Settings, StreamSettings
from pydantic import AnyHttpUrl, Field, SecretStr, model_validator

from mor_trainer.transfer_addresses import check_transfer


class RunsSettings(Settings):
    """Settings of the folder of runs, which both processes share."""

    runs_dir: Path = Path("runs")
    """Folder of all runs: checkpoints, weights, final checkpoints and the history. Shared by both processes."""


class PushSettings(Settings):
    """Settings of a push of a model, which ``mor-trainer push`` reads too."""

    push_proxy: ProxyAddress | None = None
    """Proxy for pushes of models to a hub or a registry, ``http://`` or ``https://``."""


class ControlSettings(ServiceSettings, StreamSettings, RunsSettings, PushSettings):
    """Settings of run control, status API and weight files: ``mor-trainer serve``."""

    database_url: SecretStr | None = None
    """Address of the database of runs and their history: ``postgresql://USER:PASSWORD@HOST:5432/NAME``, with options of
    libpq such as ``?sslmode=verify-full&sslrootcert=/FILE``, or ``sqlite:////FOLDER/history.sqlite3``. When unset, the
    file ``history.sqlite3`` in ``runs_dir``; a new database begins with what that file has. PostgreSQL needs
    ``mor-trainer[postgresql]``."""
    control_lease_s: float = Field(10.0, ge=0.5, le=600)
    """Seconds after which another run control takes over from one that is gone without a word. All run controls of a
    database need the same. See docs/operator-guide.md, One run control."""
    run_lease_s: float = Field(60.0, gt=0)
    """Seconds without a heartbeat after which another worker resumes a run from its last checkpoint."""
    sse_heartbeat_s: float = Field(15.0, gt=0)
    """Seconds between comments on an idle event stream; they keep proxies from closing it."""
    samples_kept: int = Field(200, ge=1)
    """Sample groups kept for each run, newest first."""
    events_kept: int = Field(20_000, ge=100)
    """Events kept for each run, newest first, for readers that reconnect; metrics are kept forever."""
    letters_kept: int = Field(1000, ge=1)
    """Dead letters kept for each run, newest first."""
    ended_run_days: float = Field(30.0, gt=0)
    """Days after a run's end until its checkpoints, weights versions and replay log are deleted; the final model stays.
    A stopped or failed run cannot be resumed after that."""
    ended_runs_kept: int = Field(100, ge=0)
    """Ended runs whose checkpoints, weights versions and replay logs are kept, newest first."""
    ended_runs_bytes: int = Field(500 << 30, ge=0)
    """Size of these files of all ended runs together, bytes, above which those of the oldest are deleted."""
    ended_runs_share: float = Field(0.5, gt=0, le=1)
    """Share of the disk of ``runs_dir`` that these files may take, where that is less; the rest is for active runs and
    final models. Those of the newest ended run stay, so that it can be resumed."""
    history_days: float = Field(180.0, gt=0)
    """Days after a run's end until its events, samples, dead letters and acknowledged alerts are deleted; its state,
    metrics and evaluations stay."""
    card_clients: Literal["number", "names"] = "number"
    """Clients in the model card of a result, which travels with the model: their ``number``, or their ``names`` and
    shares in the mixture too."""
    push_destinations: tuple[PushPlace, ...] = Field((), max_length=100)
    """Destinations to which run control pushes models for admins, or first parts of them: ``hf://OWNER``,
    ``oci://registry.example.org/models``. By default it pushes nothing."""
    push_timeout_s: float = Field(6 * 3600.0, gt=0)
    """Longest push of a model, seconds."""
    max_event_readers: int = Field(256, ge=1)
    """Largest number of open event streams; further ones get 503 with Retry-After."""
    router_url: AnyHttpUrl | None = None
    """Address of the router, which knows the clients' own tokens and their state. When unset, only the tokens of the
    tokens file are valid."""
    service_token: SecretStr = SecretStr("")
    """Bearer token with scope ``service`` for the router, which tells run control the hashes of its clients' tokens.
    Without it, clients' own tokens are not valid here."""
    router_ca_file: Path | None = None
    """PEM file of certificate authorities for a router served over HTTPS; the system's when unset."""
    alert_webhook_url: AnyHttpUrl | None = None
    """Address that receives each alert as JSON by POST; no alert is sent when unset."""
    alert_webhook_token: SecretStr = SecretStr("")
    """Bearer token sent to the webhook."""
    alert_webhook_proxy: ProxyAddress | None = None
    """Proxy for calls to the webhook, ``http://`` or ``https://``; proxy variables of the environment do not apply."""
    alert_webhook_timeout_s: float = Field(10.0, gt=0)
    """Seconds in which the webhook must answer."""
    alert_webhook_attempts: int = Field(8, ge=1)
    """Attempts to deliver one alert to the webhook; after that it waits until the webhook takes another one."""
    alert_webhook_retry_s: float = Field(5.0, gt=0)
    """Mean seconds before the second attempt; doubled for each further one, at most ten minutes, with jitter."""
    alert_webhook_per_minute: int = Field(30, ge=1)
    """Largest number of attempts in a minute, of all alerts together; further ones wait."""
    tensorboard_dir: Path | None = None
    """Folder for TensorBoard's event files, with one folder for each run; needs ``mor-trainer[tensorboard]``."""
    mlflow_tracking_uri: str | None = None
    """Address of an MLflow tracking server that receives the runs; needs ``mor-trainer[mlflow]``. The library reads
    credentials from its own ``MLFLOW_TRACKING_*`` variables."""
    mlflow_experiment: str = Field("mor", min_length=1)
    """MLflow experiment that receives the runs; created when missing."""
    trackers: tuple[str, ...] = Field((), max_length=16)
    """Further trackers by name: ``wandb``, which needs ``mor-trainer[wandb]`` and reads its own ``WANDB_*`` variables,
    ``trackio``, likewise with ``TRACKIO_*``, or one of another package."""
    tracker_queue: int = Field(1000, ge=1)
    """Largest number of figures that wait for each tracker; the oldest are discarded."""

    @property
    def default_history(self) -> Path:
        """SQLite file of the history where ``database_url`` is unset."""
        return self.runs_dir / "history.sqlite3"

    @model_validator(mode="after")
    def _are_used(self) -> ControlSettings:
        if self.alert_webhook_url is None and (self.alert_webhook_token.get_secret_value() or self.alert_webhook_proxy):
            raise ValueError(
                "MOR_ALERT_WEBHOOK_TOKEN or MOR_ALERT_WEBHOOK_PROXY is set without MOR_ALERT_WEBHOOK_URL; set that to "
                "the address that receives alerts, or remove them"
            )
        return self


class WorkerSettings(LoggedSettings, ControlCallerSettings, StreamSettings, RunsSettings):
    """Settings of the training process: ``mor-trainer work``."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that trains the model; ``auto`` takes CUDA where it is available."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products; parameters, their update and the softmax over the vocabulary stay float32. ``auto``:
    bfloat16 on an accelerator that supports it; float32 on CPU, where log-probabilities must match the engine's."""
    torch_threads: int = Field(1, ge=1)
    """CPU threads of tensor operations; all services of a machine share its cores."""
    rank_timeout_s: float = Field(120.0, gt=0)
    """Seconds without a sign of life of one of several ranks, as of a frozen one or a lost node, after which the others
    end, so that their launcher starts all again."""
    check_processes: int = Field(0, ge=0)
    """Processes that encode all prompts before the first step of a run; 0 starts one for each core, at most 8. Each
    takes a few hundred megabytes."""
    checks_dir: Path | None = None
    """Folder of the results of these checks, which runs with the same data, model and limits share; by default
    ``checks`` in ``runs_dir``."""
    encode_timeout_s: float = Field(60.0, gt=0)
    """Longest encoding of one prompt, seconds. A prompt that takes longer in the check before the first step is left
    out of the run; later, its groups are dropped."""
    feature_cache_bytes: int = Field(1 << 30, ge=0)
    """Largest size of the cache of image features and encoded prompts between steps, in bytes."""
    group_timeout_s: float = Field(120.0, gt=0)
    """Seconds after which a group that has not come back, and that no stream holds, is issued again."""
    group_attempts: int = Field(5, ge=1)
    """Issues of one group after which the trainer drops it, with an alert. Waits for clients, engines and the queue
    server do not count."""
    stall_timeout_s: float = Field(1800.0, gt=0)
    """Seconds without a single scored group after which the run fails, and names who or what it waited for."""
    published_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the matrices in published weights. ``auto``: the one in which the rollout services of the model
    compute, as they have reported; float32 where they differ, and while none has reported. Checkpoints and the final
    model stay float32."""
    publication_timeout_s: float = Field(300.0, gt=0)
    """Seconds in which the weight files of a version must be written; after that the run fails."""
    disk_reserve_bytes: int = Field(256 << 20, ge=0)
    """Bytes that stay free on the disk of ``runs_dir`` when a checkpoint, a version or the final model is written; it
    holds the history too. A run waits while less is free."""
    transfer_engines: tuple[str, ...] = ()
    """Addresses of all rollout services, each with ``MOR_WEIGHT_TRANSFER=nccl``. Full weights are broadcast to their
    GPUs through vLLM's weight-transfer API (extra ``nccl``). Files are published all the same, and pulled where the
    broadcast failed. The contract is tested over gloo on CPUs; ``nccl`` was NOT TESTED ON HARDWARE."""
    transfer_address: str | None = None
    """IPv4 address or name of this process, without a port, as seen from ``transfer_engines``; each group takes a free
    port. When unset, the address from which this process reaches the first of them. vLLM's groups cannot listen on
    IPv6."""
    transfer_timeout_s: float = Field(120.0, gt=0)
    """Seconds in which each call of a broadcast must be answered; after that the broadcast has failed."""
    index_dir: Path | None = None
    """Folder of the indexes of prompt files, through which texts and pictures are read when they are needed; all ranks
    read it. ``_prompt_index`` in the folder of runs when unset."""
    index_unused_days: float = Field(14.0, gt=0)
    """Days after its last use until an index is deleted; a later run builds it again."""
    index_bytes: int = Field(200 << 30, ge=0)
    """Size of all indexes together, bytes, above which those used longest ago are deleted; one in use never is."""
    standby: bool = False
    """While no run is queued, hold the model of a run of another worker in memory, so that this worker continues that
    run about 5 s after its lease has ended. Needs main memory for one model in float32."""
    poll_s: float = Field(2.0, gt=0)
    """Mean seconds between attempts to claim a queued run."""
    heartbeat_s: float = Field(2.0, gt=0)
    """Seconds between heartbeats, and thus until pause and stop take effect at the latest."""

    @model_validator(mode="after")
    def _work_together(self) -> WorkerSettings:
        if self.transfer_engines:
            check_transfer(self.transfer_engines, self.transfer_address)
        return self

    @property
    def prompt_index_dir(self) -> Path:
        """Folder of the indexes; no run can have the name of the default one."""
        return self.index_dir or self.runs_dir / "_prompt_index"
