"""File ``audit.json`` beside a reward model: figures of its owner's privacy audit, never the audited pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.wire import Documented, MembershipAttack, PrivacyAudit
from pydantic import Field, ValidationError

AUDIT = "audit.json"
FORMAT: Literal["mor.audit/1"] = "mor.audit/1"

_Share = Annotated[float, Field(ge=0, le=1)]


class LabelInference(Documented):
    """Labels that a model reveals: which of two known answers its owner's data prefers."""

    told: _Share
    """Share of the training pairs whose label the model tells."""
    told_held_out: _Share
    """The same for held-out pairs: what follows from the general preference alone."""
    against_pattern: int = Field(ge=0)
    """Training pairs whose label models without them get wrong: unusual or flipped ones."""
    against_pattern_told: _Share | None
    """Share of those whose label the model tells; null without such pairs or without shadow models."""
    against_pattern_held_out: int = Field(ge=0)
    """Held-out pairs of that kind."""
    against_pattern_told_held_out: _Share | None
    """Share of those whose label the model tells."""
    memorised: float | None = Field(ge=-1, le=1)
    """``against_pattern_told`` minus ``against_pattern_told_held_out``; above 0, the model memorised labels."""
    memorised_interval: tuple[float, float] | None
    """95 % interval of ``memorised``."""


class AuditRecord(Documented):
    """Content of ``audit.json``."""

    format: Literal["mor.audit/1"] = FORMAT
    statement: PrivacyAudit
    """Statement for the card."""
    attacks: tuple[MembershipAttack, ...]
    """Every attack that was tried."""
    labels: LabelInference
    shadows: int = Field(ge=0)
    """Shadow models that were trained."""


def write_record(folder: Path, record: AuditRecord) -> None:
    """Write ``audit.json`` into a model's folder."""
    atomic.write(folder / AUDIT, (record.model_dump_json(indent=2) + "\n").encode(), mode=0o644)


def read_record(folder: Path, version: str) -> AuditRecord | None:
    """Read the audit of ``version`` of the model in ``folder``; ``None`` without one, or with one of another version.

    Raises:
        Invalid: the file is damaged, or of another format.
    """
    file = folder / AUDIT
    if not file.is_file():
        return None
    try:
        record = AuditRecord.model_validate_json(file.read_bytes(), extra="ignore")
    except ValidationError as error:
        raise Invalid(f"{file}: {describe(error)}; delete it, and run 'mor-reward audit' again") from error
    return record if record.statement.model_version == version else None
