"""Check of a checkpoint's folder by its files' names and headers, without loading it and without torch."""

from __future__ import annotations

from pathlib import Path

from mor_core.errors import Invalid
from mor_core.weight_files import check_stored_weights

_WANTED = {
    "config.json": ("config.json",),
    "weights (*.safetensors)": ("*.safetensors",),
    "a processor (processor_config.json)": ("processor_config.json", "preprocessor_config.json"),
    "a tokenizer (tokenizer.json)": ("tokenizer*.json", "tokenizer.model"),
}


def check_folder(checkpoint: str) -> None:
    """Check that a local folder has config, weights, processor and tokenizer, or that a hub name looks like one.

    Raises:
        Invalid: no such folder, or files are missing, or the weights are none that can be trained.
    """
    folder = Path(checkpoint)
    if not folder.exists():
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1:
            raise Invalid(f"model: no folder {checkpoint!r}; give a checkpoint folder or a hub name 'owner/name'")
        return
    if not folder.is_dir():
        raise Invalid(f"model: {checkpoint!r} is a file; give the checkpoint folder that it lies in")
    check_stored_weights(checkpoint)
    missing = [name for name, patterns in _WANTED.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        raise Invalid(
            f"model: folder {checkpoint!r} lacks {', '.join(missing)}; write it with save_pretrained of model and "
            "processor"
        )
