"""Rows of Parquet and Arrow files, and the folders that ``save_to_disk`` of the library ``datasets`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.printable import visible

STATE_FILE = "state.json"
"""File by which a folder of ``save_to_disk`` is known; it lists the Arrow files."""
SPLITS_FILE = "dataset_dict.json"
"""File by which a folder of several splits is known."""
_BATCH_ROWS = 256
"""Rows that are decoded at a time."""
_SHOWN_CHARACTERS = 80
"""Length up to which an error quotes a column's name."""


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises:
        Invalid: the file cannot be read.
    """
    arrow = _pyarrow(file)
    try:
        with arrow.parquet.ParquetFile(file) as opened:
            _check_names(file, opened.schema_arrow.names)
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                yield from _rows(file, batch)
    except Invalid:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, "Parquet", error) from error


def decoded_bytes(file: Path) -> int:
    """Return the bytes of a Parquet file's columns without compression, by its footer.

    Raises:
        Invalid: the file cannot be read.
    """
    arrow = _pyarrow(file)
    try:
        with arrow.parquet.ParquetFile(file) as opened:
            groups = range(opened.metadata.num_row_groups)
            return sum(opened.metadata.row_group(group).total_byte_size for group in groups)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, "Parquet", error) from error


def arrow_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file, in the format of streams or of files.

    Raises:
        Invalid: the file cannot be read.
    """
    arrow = _pyarrow(file)
    try:
        with arrow.memory_map(str(file)) as content:
            try:
                batches: Any = arrow.ipc.open_stream(content)
            except arrow.ArrowInvalid:
                opened = arrow.ipc.open_file(content)
                batches = (opened.get_batch(place) for place in range(opened.num_record_batches))
            for batch in batches:
                _check_names(file, batch.schema.names)
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _rows(file, batch.slice(start, _BATCH_ROWS))
    except Invalid:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, "Arrow", error) from error


def saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder of ``save_to_disk``, in order.

    Raises:
        Invalid: the folder's list of files cannot be read, or names a file elsewhere.
    """
    state = folder / STATE_FILE
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(state, "list of files by save_to_disk", error) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise Invalid(f"{state}: there is no file {str(name)[:100]!r} beside it; save the data set again")
    return [folder / name for name in names]


def _rows(file: Path, batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch.

    Raises:
        Invalid: a column has values that Python has no type for, such as a date after the year 9999.
    """
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError) as error:
            raise Invalid(
                f"{file}: the column {visible(name)[:_SHOWN_CHARACTERS]!r} has values that cannot be read"
                f" ({describe_failure(error)}); write them as text in UTF-8, or write the file without the column"
            ) from error
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _check_names(file: Path, names: list[str]) -> None:
    """Check that no two columns have one name: pyarrow would keep the last of them.

    Raises:
        Invalid: two have.
    """
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"{file}: the column {name[:_SHOWN_CHARACTERS]!r} is given twice; keep one of the two")


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise Invalid(f"{file}: reading Parquet and Arrow needs pyarrow; install mor-core[parquet]") from error
    return pyarrow


def _unreadable(file: Path, kind: str, error: Exception) -> Invalid:
    return Invalid(f"{file}: not a readable {kind} ({describe_failure(error)}); write the file again")
