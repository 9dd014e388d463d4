"""Rows of a data set of the Hugging Face hub, through the library ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.failures import describe_failure

_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
_DEFAULT_SPLIT = "train"


def name_of(path: Path) -> re.Match[str] | None:
    """Return the parts of a name on the hub, ``None`` for a path.

    Raises:
        Invalid: the name begins as one on the hub, and is none.
    """
    found = _NAME.fullmatch(str(path))
    if found is None and str(path).startswith("hub:"):
        raise Invalid(f"{path}: write hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:CONFIG:SPLIT")
    return found


def cache_folder() -> Path:
    """Return the folder below which the library puts files."""
    return Path(str(_datasets().config.HF_CACHE_HOME))


def read_rows(name: re.Match[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set, images as ``{"bytes", "path"}``, after fetching it if it is not in the cache.

    Raises:
        Invalid: the library is not installed, or cannot load the data set.
    """
    try:
        for batch in _load(name).with_format("arrow").iter(batch_size=256):
            yield from batch.to_pylist()
    except Exception as error:
        raise _not_loaded(name, error) from error


def cached_files(name: re.Match[str]) -> tuple[Path, ...]:
    """Return the files of the cache that hold the rows, after fetching them if they are not there.

    Raises:
        Invalid: as ``read_rows``.
    """
    try:
        return tuple(Path(entry["filename"]) for entry in _load(name).cache_files)
    except Exception as error:
        raise _not_loaded(name, error) from error


def _load(name: re.Match[str]) -> Any:
    # With one name behind the data set it is the split's, which most data sets are chosen by.
    config, split = (name["config"], name["split"]) if name["split"] else (None, name["config"] or _DEFAULT_SPLIT)
    return _datasets().load_dataset(name["name"], config, split=split)


def _not_loaded(name: re.Match[str], error: Exception) -> Invalid:
    """Return the error for a data set; the library lets through what the network, the hub and its parsers raise."""
    if isinstance(error, Invalid):
        return error
    return Invalid(
        f"{name[0]}: the data set cannot be loaded ({describe_failure(error)}); "
        "check name and split, or download it and give its folder"
    )


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise Invalid("a data set of the hub needs the library datasets; install mor-core[hub]") from error
    return datasets
