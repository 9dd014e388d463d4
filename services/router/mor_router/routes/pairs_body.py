"""Body of an upload of pairs: ``mor.prefs/1`` as JSONL, or a form with it and its pictures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from mor_core.errors import Invalid
from mor_core.images import MAX_BYTES
from starlette.datastructures import UploadFile

_MOST_FILES = 20_000
"""Pictures in one upload: more than anchors in any sensible set; the bytes of a request have their own bound."""
PAIRS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {"schema": {"type": "string", "description": "mor.prefs/1, images as data URIs"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["anchors"],
                    "properties": {
                        "anchors": {"type": "string", "format": "binary", "description": "mor.prefs/1 as JSONL"},
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Each under the file name that the JSONL has",
                        },
                    },
                }
            },
        },
    }
}
"""Description for the OpenAPI document."""
PublicPairs = Annotated[
    bool, Query(description="All their pictures and texts are public, for clients whose rule wants such prompts.")
]
"""Mark of uploaded pairs that are public."""


async def read_pairs_body(request: Request) -> tuple[bytes, dict[str, bytes]]:
    """Return the lines of an upload, and its files by name.

    Raises:
        Invalid: another content type, or no lines.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind in ("application/x-ndjson", "application/jsonl", "application/json", "text/plain"):
        return await request.body(), {}
    if kind != "multipart/form-data":
        raise Invalid(f"content type {kind or 'missing'}; send application/x-ndjson, or multipart/form-data with files")
    async with request.form(max_files=_MOST_FILES, max_part_size=MAX_BYTES) as form:
        lines = form.get("anchors")
        pictures = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
        if lines is None:
            raise Invalid("form field 'anchors' is missing; send the mor.prefs/1 JSONL in it")
        content = await lines.read() if isinstance(lines, UploadFile) else lines.encode()
        return content, {part.filename or "": await part.read() for part in pictures}
