"""Files of a model's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.run_storage import ExportedFile
from mor_core.weight_files import ADAPTER_CONFIG

_CONFIGS = ("config.json", ADAPTER_CONFIG)


def list_model_files(folder: Path) -> tuple[ExportedFile, ...]:
    """Return names, sizes and hashes of the files of a model, without links and what a killed process left."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(ExportedFile(name=name.as_posix(), bytes=file.tell(), sha256=digest))
    return tuple(found)


def check_model(folder: Path) -> None:
    """Check that a folder is that of a model or of an adapter.

    Raises:
        Invalid: it is not.
    """
    if not any((folder / name).is_file() for name in _CONFIGS):
        raise Invalid(
            f"{folder} is no folder of a model: it has neither {' nor '.join(_CONFIGS)}; give the folder of a final "
            "model or of an export"
        )
