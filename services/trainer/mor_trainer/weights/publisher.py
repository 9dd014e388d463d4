"""How a version of the policy gets to the engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from anyio.from_thread import BlockingPortal
from mor_core.runs import Claim
from torch import Tensor

from mor_trainer.config import WorkerSettings
from mor_trainer.groups.exchange import Groups
from mor_trainer.model.policy import Policy
from mor_trainer.weights import files
from mor_trainer.weights.broadcast import Broadcast, WeightTransfer

log = structlog.get_logger(__name__)


class Publisher:
    """Writes a version's files and lets prompts name it; before that it is broadcast, where that is asked for."""

    def __init__(
        self,
        settings: WorkerSettings,
        claim: Claim,
        folder: Path,
        policy: Policy,
        *,
        portal: BlockingPortal,
        groups: Groups,
        emit: Callable[[Any, dict[str, Any]], None],
    ) -> None:
        self._run, self._spec = claim.run, claim.spec
        self._folder = folder
        self._policy = policy
        self._portal = portal
        self._groups = groups
        self._emit = emit
        root = (settings.weights_url or settings.control_url).rstrip("/")
        self._url = f"{root}/v1/runs/{claim.run}/weights"
        self._transfer: WeightTransfer | None = None
        if settings.transfer_engines and claim.spec.tuning.kind == "full":  # adapters are small, their files do
            self._transfer = Broadcast(settings, claim.run, claim.spec.model)

    def publish(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        """``trainable``: the policy's trained tensors, whole, which must not change meanwhile."""
        begun = time.monotonic()
        sent = self._transfer is not None and self._send(self._transfer, version, trainable)
        if sent:
            self._announce(version)
        manifest = files.publish(
            self._folder,
            self._run,
            version,
            self._spec.model,
            model=self._policy.model,
            adapter=self._policy.adapter,
            trainable=trainable,
            keep=self._spec.keep_weights,
        )
        if not sent:
            self._announce(version)
        size = sum(file.bytes for file in manifest.files)
        self._emit("weights", {"version": version, "bytes": size, "seconds": time.monotonic() - begun})

    def close(self) -> None:
        if self._transfer is not None:
            self._transfer.close()

    def _announce(self, version: int) -> None:
        self._portal.call(self._groups.announce_version, version, f"{self._url}/{version}")

    def _send(self, transfer: WeightTransfer, version: int, trainable: Mapping[str, Tensor]) -> bool:
        try:
            transfer.send(version, files.full_tensors(self._policy.model, trainable))
        except Exception as error:  # whatever it is, the files do
            log.warning("weights were not broadcast", run=self._run, version=version, exc_info=error)
            reason = f"version {version} was not broadcast and is pulled as files instead: {str(error)[:500]}"
            self._emit("alert", {"name": "weight_transfer_failed", "reason": reason})
            return False
        return True
