"""Files that hold a checkpoint's weights, as its loaders in trainer, engines and reward models must all find them.

An index decides; without one, the weights are in ``model.safetensors``. Other files beside them, such as a value head
or a second copy in another format, are no part of the model.
"""

from __future__ import annotations

import json
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.tensor_headers import read_header

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that can be trained. Buffers, such as positions, may be integers."""
_FOREIGN = {
    "*.gguf": "weights of llama.cpp; give the checkpoint of transformers that they were made from",
    "consolidated*": "weights in a format of their own; give the checkpoint in the format of transformers",
    "pytorch_model*.bin": "pickled weights, which may run code; load the model, and save it with save_pretrained",
    "*.pt": "pickled weights, which may run code; save the model with save_pretrained",
    "*.pth": "pickled weights, which may run code; save the model with save_pretrained",
    "*.ckpt": "pickled weights, which may run code; save the model with save_pretrained",
    "*.msgpack": "weights of Flax; give a checkpoint of PyTorch",
    "*.h5": "weights of TensorFlow; give a checkpoint of PyTorch",
    "*.onnx": "a compiled model, which cannot be trained; give the checkpoint that it was made from",
}
"""Content of other files of weights, and the cure, by the pattern of their names; the first that fits is told."""


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
    _check_format(folder)
    if not folder.is_dir():
        raise Invalid(f"{folder}: no such folder; give the folder of a checkpoint")
    raise Invalid(f"{folder} has no *.safetensors; save it with save_pretrained, which writes {_SINGLE} or {_INDEX}")


def check_stored_weights(model: str) -> None:
    """Check, by names and headers of its files, that the weights of a checkpoint can be trained, if they are there.

    A folder may lack them where only its processor is used. Those of a hub name are checked once they are loaded.

    Raises:
        Invalid: it is an adapter, or in another format than safetensors, damaged or quantised.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    check_unambiguous(folder)
    if (folder / _INDEX).is_file():
        files = dict(_indexed(folder))
    elif (folder / _SINGLE).is_file():
        files = {_SINGLE: frozenset()}
    else:
        _check_format(folder)
        return
    for name, wanted in files.items():
        tensors, _ = read_header(folder / name)
        if missing := sorted(wanted - tensors.keys()):
            raise Invalid(f"{folder / name}: the index names tensor {missing[0]!r}, which is not in it; copy it again")
        for tensor, entry in tensors.items():
            if "weight" in tensor.rpartition(".")[2] and entry["dtype"] not in _FLOATS:
                raise Invalid(
                    f"{folder / name} has {tensor!r} as {entry['dtype']}: quantised weights cannot be trained; give the"
                    " checkpoint that they were made from, in float32, bfloat16 or float16"
                )


def _check_format(folder: Path) -> None:
    """Check that a folder without safetensors has no other weights.

    Raises:
        Invalid: it has some, with what they are.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise Invalid(
            f"{folder} is an adapter ({ADAPTER_CONFIG}), not a model; merge it into its base model (merge_and_unload of"
            " PEFT), and save the result with save_pretrained"
        )
    for pattern, kind in _FOREIGN.items():
        if found := sorted(folder.glob(pattern)):
            raise Invalid(f"{folder} has {found[0].name} instead of {_SINGLE}: {kind}")


def check_unambiguous(folder: Path) -> None:
    """Check that every loader takes the same weights.

    Raises:
        Invalid: transformers would add an adapter to them, or the index leaves out the file that transformers prefers.
    """
    if (folder / "config.json").is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise Invalid(
            f"{folder} has an adapter ({ADAPTER_CONFIG}) beside the model's own weights, and transformers would add it "
            "to them; merge the adapter, or move its files to another folder"
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
