"""Publisher of weight versions: broadcast, files, and their announcement to the group exchange."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import torch
from anyio.from_thread import BlockingPortal
from mor_core.failures import describe_failure
from mor_core.runs import Claim
from mor_core.wire import WeightsManifest
from torch import Tensor

from mor_trainer.config import WorkerSettings
from mor_trainer.groups.exchange import GroupExchange
from mor_trainer.model.policy import Policy
from mor_trainer.weights import version_writer
from mor_trainer.weights.broadcast import WeightBroadcast, WeightTransfer
from mor_trainer.weights.published_type import PublishedTensors, PublishedType

log = structlog.get_logger(__name__)


class Publisher:
    """Publisher of a run's versions: writes the files and announces them, so that prompts name the version.

    Where ``transfer_engines`` is set, the version is broadcast first and announced at once.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        claim: Claim,
        folder: Path,
        staging: Path,
        policy: Policy,
        *,
        portal: BlockingPortal,
        exchange: GroupExchange,
        emit: Callable[[Any, dict[str, Any]], None],
        check_lease: Callable[[], None],
        published_type: PublishedType,
    ) -> None:
        self._run, self._spec = claim.run, claim.spec
        self._folder, self._staging = folder, staging
        self._policy = policy
        self._portal = portal
        self._exchange = exchange
        self._emit = emit
        self._check_lease = check_lease
        self._published_type = published_type
        self._dtypes: dict[int, torch.dtype] = {}
        """Number format of the version that is published: the same in its files, its broadcast and a repetition."""
        self._sent: int | None = None
        """Version that was broadcast last."""
        self._transfer: WeightTransfer | None = None
        if settings.transfer_engines and claim.spec.tuning.kind == "full":  # adapters are small: files suffice
            self._transfer = WeightBroadcast(settings, claim.run, claim.spec.model, claim.attempt)

    def publish(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        """Publish a version. ``trainable``: the policy's trained tensors, whole; they must not change meanwhile.

        Raises:
            RunLeaseLost: the run belongs to another worker.
        """
        self._check_lease()
        begun = time.monotonic()
        sent = self._sent == version  # where its files found no room
        if not sent and self._transfer is not None and self._send(self._transfer, version, trainable):
            sent, self._sent = True, version
            self._announce(version)
        try:
            manifest = self._write(version, trainable)
        except FileNotFoundError:  # the folder of weights was deleted meanwhile
            manifest = self._write(version, trainable)
        if not sent:
            self._announce(version)
        size = sum(file.bytes for file in manifest.files)
        self._emit("weights", {"version": version, "bytes": size, "seconds": time.monotonic() - begun})

    def bytes_of(self, version: int, trainable: Mapping[str, Tensor]) -> int:
        """Return the bytes that a version will have."""
        return PublishedTensors(trainable, self._dtype(version)).bytes

    def _dtype(self, version: int) -> torch.dtype:
        if version not in self._dtypes:
            self._dtypes = {version: self._published_type.current()}
        return self._dtypes[version]

    def _write(self, version: int, trainable: Mapping[str, Tensor]) -> WeightsManifest:
        return version_writer.write_version(
            self._folder,
            self._run,
            version,
            self._spec.model,
            model=self._policy.model,
            adapter=self._policy.adapter,
            trainable=trainable,
            keep=self._spec.keep_weights,
            dtype=self._dtype(version),
            algorithm=self._published_type.algorithm(),
            staging=self._staging,
        )

    def close(self) -> None:
        if self._transfer is not None:
            self._transfer.close()

    def _announce(self, version: int) -> None:
        self._portal.call(self._exchange.announce_version, version)

    def _send(self, transfer: WeightTransfer, version: int, trainable: Mapping[str, Tensor]) -> bool:
        try:
            tensors = version_writer.full_tensors(self._policy.model, trainable)
            transfer.send(version, PublishedTensors(tensors, self._dtype(version)))
        except Exception as error:  # any failure: engines pull the files instead
            log.warning("weights were not broadcast", run=self._run, version=version, exc_info=error)
            reason = f"version {version} was not broadcast and is pulled as files instead: {describe_failure(error)}"
            self._emit("alert", {"name": "weight_transfer_failed", "reason": reason})
            return False
        return True
