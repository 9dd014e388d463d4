"""Types of the router's API about objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from mor_core.objectives import ObjectiveName
from mor_core.wire import Documented

COLD_START = 0
"""Gate version of an unfitted objective: uniform over the active clients."""

ObjectiveText = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Paraphrases = Annotated[tuple[ObjectiveText, ...], Field(max_length=32)]
AuditShare = Annotated[float, Field(ge=0, le=1)]
AuditedBy = Literal["labeller", "people"]


class Objective(Documented):
    """Stored objective."""

    name: ObjectiveName
    text: str
    """Alignment goal as text; sent to the clients."""
    paraphrases: tuple[str, ...] = ()
    """Paraphrases of the text; a text that a run requests is compared with each of them too."""
    created_at: float
    """Unix time, seconds."""
    anchors: int = 0
    """Number of pairs in its anchor set."""
    active: int = COLD_START
    """Active gate version; 0: none, uniform over the active clients."""
    history: tuple[int, ...] = ()
    """Previously active gate versions, the latest last."""
    audit_share: AuditShare | None = None
    """Share of the live groups that are audited; 0: none; null: the router's ``MOR_AUDIT_SHARE``."""
    audited_by: AuditedBy = "labeller"
    """``labeller``: its checker, function or judge labels audited groups, and people do where it has none.
    ``people``: people do in any case."""


class NewObjective(Documented):
    """Body of ``POST /v1/objectives``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "helpful", "text": "Answer correctly, with what was asked for."}]}
    )

    name: ObjectiveName
    text: ObjectiveText
    """Alignment goal as text; sent to the clients."""
    paraphrases: Paraphrases = ()
    """Paraphrases of the text; a text that a run requests is compared with each of them too."""
    audit_share: AuditShare | None = None
    """Share of the live groups that are audited; 0: none; null: the router's ``MOR_AUDIT_SHARE``."""
    audited_by: AuditedBy = "labeller"
    """``labeller``: its checker, function or judge labels audited groups, and people do where it has none.
    ``people``: people do in any case."""


class ObjectiveChange(Documented):
    """Body of ``PATCH /v1/objectives/{name}``; omitted fields stay unchanged."""

    paraphrases: Paraphrases = ()
    """New paraphrases; they replace all previous ones."""
    audit_share: AuditShare | None = None
    """New share of the live groups that are audited; 0: none; null: the router's ``MOR_AUDIT_SHARE``."""
    audited_by: AuditedBy = "labeller"
    """``labeller``: its checker, function or judge labels audited groups, and people do where it has none.
    ``people``: people do in any case."""


class DeletedObjective(Documented):
    """Things that the deletion of an objective removes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"objective": "helpful", "anchors": 500, "gate_versions": 3, "bytes": 9437184}]}
    )

    objective: str
    anchors: int
    """Pairs of its anchor set."""
    gate_versions: int
    bytes: int
    """Size of all that is stored for it, with pictures, cached scores and audits."""
    dry_run: bool = False
    """True if nothing was deleted."""


class FitRequest(Documented):
    """Body of ``POST /v1/objectives/{name}/fit``."""

    activate: bool = True
    """True activates the new gate version."""
    newcomers_only: bool = False
    """True fits only clients that the active version lacks, and keeps its clients unchanged."""


class RefitRequest(Documented):
    """Body of ``POST /v1/objectives/{name}/refit``."""

    activate: bool = True
    """True activates the new gate version."""
