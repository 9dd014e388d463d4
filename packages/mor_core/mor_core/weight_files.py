"""Files that hold a checkpoint's weights, as its loaders in trainer, engines and reward models must all find them.

An index decides; without one, the weights are in ``model.safetensors``. Other files beside them, such as a value head
or a second copy in another format, are no part of the model.
"""

from __future__ import annotations

import json
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.failures import describe_failure

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> dict[Path, frozenset[str] | None]:
    """Return the weights files of a checkpoint in safetensors, each with its tensors' names; ``None`` for all in it.

    Raises:
        Invalid: there are none, the index names one that is not there, or loaders would disagree about them.
    """
    check_unambiguous(folder)
    if (folder / _INDEX).is_file():
        return {folder / name: tensors for name, tensors in _indexed(folder).items()}
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: None}
    raise Invalid(f"{folder} has no *.safetensors; save it with save_pretrained, which writes {_SINGLE} or {_INDEX}")


def check_unambiguous(folder: Path) -> None:
    """Check that every loader takes the same weights.

    Raises:
        Invalid: transformers would add an adapter to them, or the index leaves out the file that transformers prefers.
    """
    if (folder / "config.json").is_file() and (folder / _ADAPTER).is_file():
        raise Invalid(
            f"{folder} has an adapter ({_ADAPTER}) beside the model's own weights, and transformers would add it to"
            " them; merge the adapter, or move its files to another folder"
        )
    if not (folder / _INDEX).is_file() or not (folder / _SINGLE).is_file():
        return
    if _SINGLE not in _indexed(folder):
        raise Invalid(
            f"{folder} has {_SINGLE}, and an index ({_INDEX}) that names other files; delete the one that is not the"
            " model"
        )


def _indexed(folder: Path) -> dict[str, frozenset[str]]:
    """Return the tensors' names by file, as the index states them."""
    try:
        places = json.loads((folder / _INDEX).read_text())["weight_map"]
        files = sorted(set(places.values()))
        if not files or any(not isinstance(name, str) or Path(name).name != name for name in files):
            raise ValueError("a weight_map of tensor names to names of files in the same folder is wanted")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid(
            f"{folder / _INDEX}: not an index of weights ({describe_failure(error)}); save the model again"
        ) from error
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise Invalid(f"{folder / _INDEX} names {', '.join(missing[:3])}, which is not there; copy the file too")
    return {name: frozenset(tensor for tensor, file in places.items() if file == name) for name in files}
