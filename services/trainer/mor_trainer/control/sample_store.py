"""Store of sample groups: the newest of each run, and thumbnails of their pictures."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from typing import Any

from mor_core.errors import NotFound
from mor_core.run_status import SampleGroup
from mor_core.stored import StoredEntries
from mor_core.wire import EventRecord, JsonObject
from pydantic import TypeAdapter

from mor_trainer.control.database import Database
from mor_trainer.control.transaction import Transaction

_IMAGES = {
    "sqlite": "json_each(samples.data, '$.images')",
    "postgresql": r"json_array_elements_text(CAST(replace(samples.data, '\u0000', '\u0020') AS json) -> 'images') "
    "AS image (value)",
}
"""Hashes of the pictures of a sample, by the dialect of the database; PostgreSQL reads no JSON with a NUL."""
_WILDCARDS = re.compile("[!%_]")
"""Characters that LIKE does not take literally."""
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)
_ROWS = StoredEntries("history", largest=64 << 20)


class SampleStore:
    """Sample groups of all runs."""

    def __init__(self, database: Database, kept: int) -> None:
        self._database = database
        self._kept = kept

    def add_in(self, sql: Transaction, event: EventRecord, attempt: int) -> None:
        """Store the samples of an event within the transaction of ``sql``."""
        for group in event.data["groups"]:
            sql.run(
                "INSERT INTO samples (run, step, attempt, data) VALUES (:run, :step, :attempt, :data)",
                run=event.run,
                step=event.step,
                attempt=attempt,
                data=json.dumps(group),
            )
        for digest, content in event.data.get("thumbnails", {}).items():
            sql.run(
                "INSERT INTO thumbnails VALUES (:run, :digest, :content) ON CONFLICT DO NOTHING",
                run=event.run,
                digest=digest,
                content=b64decode(content),
            )
        sql.run(
            "DELETE FROM samples WHERE run=:run AND id NOT IN "
            "(SELECT id FROM samples WHERE run=:run ORDER BY id DESC LIMIT :kept)",
            run=event.run,
            kept=self._kept,
        )
        sql.run(
            "DELETE FROM thumbnails WHERE run=:run AND sha256 NOT IN "  # noqa: S608
            f"(SELECT value FROM samples, {_IMAGES[sql.dialect]} WHERE samples.run=:run)",
            run=event.run,
        )

    def list(self, run: str, limit: int, *, picture: str = "", prompt: str | None = None) -> list[SampleGroup]:
        """List the newest sample groups, newest first: all, those in which the hash of ``picture`` occurs, or those of
        the prompt with the id ``prompt``."""
        named = picture if prompt is None else f'"prompt_id": {json.dumps(prompt)}'
        rows = self._database.rows(
            "SELECT step, data FROM samples WHERE run=:run AND data LIKE :pattern ESCAPE '!' "
            "ORDER BY id DESC LIMIT :limit",
            run=run,
            pattern="%" + _WILDCARDS.sub(r"!\g<0>", named) + "%",
            limit=limit,
        )
        found = _ROWS.parse_list(
            rows,
            lambda row: SampleGroup.model_validate(
                {"step": row["step"], **_OBJECT.validate_json(row["data"])}, extra="ignore"
            ),
        )
        return [sample for sample in found if prompt in (None, sample.prompt_id)]  # LIKE knows no capital letters

    def thumbnail(self, run: str, digest: str) -> bytes:
        """Return the thumbnail of a sample's picture, a JPEG.

        Raises:
            NotFound: no kept sample has that picture.
        """
        row = self._database.row(
            "SELECT content FROM thumbnails WHERE run=:run AND sha256=:digest", run=run, digest=digest
        )
        if row is None:
            raise NotFound(f"no kept sample of run {run} has a picture {digest[:12]}; /samples lists them")
        return bytes(row["content"])
