"""Calls of the router about objectives: create, change, replace anchors, fit, roll back the gate version."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mor_core.audits import AuditCounts
from mor_core.datafiles import preference_row, preferences_of, read_preferences
from mor_core.notebook_tables import NotebookTable
from mor_core.proposals import CandidateCounts, LabelProposal, ProposalRequest
from mor_core.stored_objectives import DeletedObjective, FitRequest, NewObjective, Objective, ObjectiveChange
from mor_core.wire import ModelRef

from mor_client.anchor_rows import anchor_rows
from mor_client.config import ClientSettings
from mor_client.given_arguments import arguments, record
from mor_client.transport import Transport


class AnchorShare(NotebookTable):
    """Fraction of the anchors, with its 95 % interval."""

    value: float
    low: float
    high: float
    of: int
    """Number of anchors."""


class ClientFit(NotebookTable):
    """Figures of one client in a fit."""

    client: str
    accuracy: AnchorShare
    """Anchors that the client's own scores rank as labelled."""
    weight_by_domain: dict[str, float]


class FitFigures(NotebookTable):
    """Quality of a fit, in short; the router's OpenAPI page describes the whole report."""

    pairs: int
    clients: tuple[ClientFit, ...]
    left_out: dict[str, str]
    """Clients outside the mixture, with the reason."""
    held_out_accuracy: AnchorShare
    uniform_accuracy: AnchorShare
    """Accuracy of the plain average of all clients."""


class Gate(NotebookTable):
    """Version of a gate."""

    version: int
    objective: str
    created_at: float
    models: dict[str, ModelRef]
    extends: int | None = None
    report: FitFigures


class ObjectiveCalls:
    """Calls about the objectives of a router."""

    def __init__(self, router: Transport, settings: ClientSettings) -> None:
        self._router = router
        self._settings = settings

    def create(self, objective: NewObjective | Mapping[str, Any]) -> Objective:
        created = record("objective", objective, NewObjective)
        return self._objective("POST", "/v1/objectives", json=created.model_dump(mode="json", exclude_defaults=True))

    def change(self, name: str, change: ObjectiveChange | Mapping[str, Any]) -> Objective:
        """Change paraphrases or audits of an objective; fields that ``change`` does not have stay."""
        body = record("change", change, ObjectiveChange).model_dump(mode="json", exclude_unset=True)
        return self._objective("PATCH", f"/v1/objectives/{name}", json=body)

    def audits(self, name: str) -> AuditCounts:
        """Count the audited groups of an objective."""
        found: AuditCounts = self._router.get(f"/v1/objectives/{name}/audits", AuditCounts)
        return found

    def versions(self, name: str) -> list[Gate]:
        """List the gate versions of an objective, oldest first."""
        found: list[Gate] = self._router.pages(f"/v1/objectives/{name}/gates", Gate, "version")
        return found

    def list(self) -> list[Objective]:
        """List all objectives by name."""
        found: list[Objective] = self._router.pages("/v1/objectives", Objective, "name")
        return found

    def get(self, name: str) -> Objective:
        return self._objective("GET", f"/v1/objectives/{name}")

    def put_anchors(
        self, name: str, anchors: Path | str | Iterable[Any], columns: str = "", *, public: bool = False
    ) -> Objective:
        """Replace the anchor set by preferences, checked before they are sent; pictures go inline.

        Args:
            name: name of the objective.
            anchors: a data set (file, folder, pattern or hub name); or preferences in memory: dicts with the columns of
                ``mor.prefs/1``, or tuples ``(prompt, chosen, rejected)`` with a list of pictures as an optional
                fourth. Pictures in memory are encoded bytes, images of Pillow, arrays of NumPy, or ``Path`` objects.
            columns: other names of the columns, as ``prompt=question,images=image``.
            public: all pictures and texts are public, for clients that may be sent nothing else.

        Raises:
            DataFileError: names the invalid line, or the invalid anchor counted from 1, and the cure.
            Invalid: ``anchors`` are neither; names the cure.
        """
        return self._objective("PUT", f"/v1/objectives/{name}/anchors", **self._upload(anchors, columns, public))

    def put_candidates(
        self, name: str, pairs: Path | str | Iterable[Any], columns: str = "", *, public: bool = False
    ) -> CandidateCounts:
        """Have every client score unlabelled pairs, and keep them as candidates for labels, in place of earlier ones.

        The arguments are those of ``put_anchors``; which response is ``chosen`` means nothing.

        Raises:
            DataFileError: names the invalid line, or the invalid pair counted from 1, and the cure.
            Invalid: ``pairs`` are neither; names the cure.
        """
        found: CandidateCounts = self._router.call(
            "PUT",
            f"/v1/objectives/{name}/candidates",
            CandidateCounts,
            **self._upload(pairs, columns, public),
        )
        return found

    def _upload(self, pairs: Path | str | Iterable[Any], columns: str, public: bool) -> dict[str, Any]:
        """Return the parts of a request that sends pairs."""
        if isinstance(pairs, str | Path):
            preferences = read_preferences(Path(pairs), columns)
        else:
            preferences = preferences_of(anchor_rows(pairs, columns), "anchors")
        rows = [preference_row(preference, _data_uri) for preference in preferences]
        for row in rows:
            row.pop("person", None)  # a person's name stays with the data's owner
        return {
            "params": {"public": public},
            "content": "\n".join(map(json.dumps, rows)).encode(),
            "headers": {"Content-Type": "application/x-ndjson"},
            "timeout_s": self._settings.fit_timeout_s,
        }

    def worth_labelling(self, name: str, count: int = 16) -> LabelProposal:
        """Rank the unlabelled pairs by what their labels would tell the next fit."""
        found: LabelProposal = self._router.get(f"/v1/objectives/{name}/proposals", LabelProposal, count=count)
        return found

    def propose(self, name: str, count: int = 16) -> LabelProposal:
        """Move the pairs worth labelling next to the queue of audited groups, where they are labelled."""
        body = arguments(ProposalRequest, count=count).model_dump(mode="json")
        found: LabelProposal = self._router.call(
            "POST", f"/v1/objectives/{name}/proposals", LabelProposal, json=body, timeout_s=self._settings.fit_timeout_s
        )
        return found

    def fit(self, name: str, request: FitRequest | Mapping[str, Any]) -> Gate:
        """Have every client score the anchors, fit calibration and gate, and activate the version if requested."""
        found: Gate = self._router.call(
            "POST",
            f"/v1/objectives/{name}/fit",
            Gate,
            json=record("request", request, FitRequest).model_dump(mode="json"),
            timeout_s=self._settings.fit_timeout_s,
        )
        return found

    def rollback(self, name: str, *, to_uniform: bool = False) -> Objective:
        """Activate the previous gate version. ``to_uniform``: also equal weights, before the first one."""
        params = {"to_uniform": to_uniform or None}
        return self._objective("POST", f"/v1/objectives/{name}/gates/rollback", params=params)

    def activate(self, name: str, version: int) -> Objective:
        """Activate a gate version, an earlier or a later one."""
        return self._objective("POST", f"/v1/objectives/{name}/gates/{version}/activate", idempotent=True)

    def delete(self, name: str, *, dry_run: bool = False) -> DeletedObjective:
        """Delete an objective with its anchors and gate versions."""
        found: DeletedObjective = self._router.call(
            "DELETE", f"/v1/objectives/{name}", DeletedObjective, params={"dry_run": dry_run or None}
        )
        return found

    def _objective(self, method: str, path: str, **request: Any) -> Objective:
        found: Objective = self._router.call(method, path, Objective, **request)
        return found


def _data_uri(_: str, content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
