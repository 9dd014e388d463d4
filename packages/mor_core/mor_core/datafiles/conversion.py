"""Writers of ``mor.prompts/1`` and ``mor.prefs/1``: one JSONL file with a folder of pictures, or one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mor_core import atomic
from mor_core.datafiles.reading import Preference, Prompt
from mor_core.errors import Conflict, Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.images import media_type
from mor_core.wire import ImagePart, TextPart, image_hashes

ImageCell = Callable[[str, bytes], Any]
"""Function from hash and bytes of an image to its cell."""


def prompt_row(prompt: Prompt, image_cell: ImageCell) -> dict[str, Any]:
    """Return the columns of a row of ``mor.prompts/1``, images in the order of the messages."""
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                for part in ((TextPart(text=message.content),) if isinstance(message.content, str) else message.content)
            ],
        }
        for message in prompt.messages
    ]
    images = [image_cell(digest, prompt.images[digest]) for digest in image_hashes(prompt.messages)]
    labels = {"domain": prompt.domain, "person": prompt.person}
    given = {name: label for name, label in labels.items() if label is not None}
    return {"id": prompt.id, "prompt": turns, "images": images, **given}


def preference_row(preference: Preference, image_cell: ImageCell) -> dict[str, Any]:
    """Return the columns of a row of ``mor.prefs/1``."""
    row = prompt_row(preference.prompt, image_cell)
    return {**row, "chosen": preference.chosen, "rejected": preference.rejected}


def write_prompts(prompts: Sequence[Prompt], target: Path) -> None:
    """Write prompts to a new ``.jsonl`` or ``.parquet`` file.

    Raises:
        Conflict: ``target`` or its folder of pictures exists.
        Invalid: the name has another suffix.
        Unavailable: the folder cannot be written.
    """
    _write(prompts, lambda cell: [prompt_row(prompt, cell) for prompt in prompts], target)


def write_preferences(preferences: Sequence[Preference], target: Path) -> None:
    """Write preferences to a new ``.jsonl`` or ``.parquet`` file.

    Raises:
        Conflict: ``target`` or its folder of pictures exists.
        Invalid: the name has another suffix.
    """
    prompts = [preference.prompt for preference in preferences]
    _write(prompts, lambda cell: [preference_row(preference, cell) for preference in preferences], target)


def check_target(target: Path) -> None:
    """Check that a file can be written, before the work that leads to it.

    Raises:
        Conflict: ``target`` exists.
        Invalid: the name has another suffix than ``.jsonl`` and ``.parquet``.
    """
    if target.exists():
        raise Conflict(f"{target} exists; choose another name, or delete it")
    if target.suffix not in (".jsonl", ".parquet"):
        raise Invalid(f"{target}: got suffix {target.suffix!r}; write to a .jsonl or .parquet file")


def _write(prompts: Sequence[Prompt], rows: Callable[[ImageCell], list[dict[str, Any]]], target: Path) -> None:
    check_target(target)
    try:
        if target.suffix == ".parquet":
            atomic.write(target, _parquet(rows(_embedded)))
        else:
            _write_lines(prompts, rows, target)
    except OSError as error:
        raise Unavailable(
            f"{target} cannot be written ({describe_failure(error)}); make room, or choose another folder"
        ) from error


def _write_lines(prompts: Sequence[Prompt], rows: Callable[[ImageCell], list[dict[str, Any]]], target: Path) -> None:
    pictures = {digest: content for prompt in prompts for digest, content in prompt.images.items()}
    names = {digest: f"{digest}.{media_type(content).partition('/')[2]}" for digest, content in pictures.items()}
    folder = target.with_name(f"{target.stem}-images")
    if pictures:
        with atomic.folder(folder, replace=False) as partial:
            for digest, content in pictures.items():
                (partial / names[digest]).write_bytes(content)
    lines = rows(lambda digest, _: f"{folder.name}/{names[digest]}")
    atomic.write(target, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _embedded(_: str, content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Invalid("writing Parquet needs pyarrow; install mor-core[parquet], or write a .jsonl file") from error
    part = pyarrow.struct([("type", pyarrow.string()), ("text", pyarrow.string())])
    columns = {
        "id": pyarrow.string(),
        "prompt": pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.list_(part))])),
        "images": pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        "chosen": pyarrow.string(),
        "rejected": pyarrow.string(),
        "domain": pyarrow.string(),
        "person": pyarrow.string(),
    }
    used = {name for row in rows for name in row}
    schema = pyarrow.schema([(name, kind) for name, kind in columns.items() if name in used])
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer)
    return bytes(buffer.getvalue())
