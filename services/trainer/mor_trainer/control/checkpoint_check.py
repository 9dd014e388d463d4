"""A quick look at a checkpoint's folder, without loading it and without torch."""

from __future__ import annotations

from pathlib import Path

from mor_core.errors import Invalid

_WANTED = {
    "config.json": ("config.json",),
    "weights (*.safetensors)": ("*.safetensors", "pytorch_model*.bin"),
    "a processor (processor_config.json)": ("processor_config.json", "preprocessor_config.json"),
    "a tokenizer (tokenizer.json)": ("tokenizer*.json", "tokenizer.model"),
}


def check_folder(checkpoint: str) -> None:
    """A local folder must hold config, weights, processor and tokenizer; a hub name must look like one.

    Raises:
        Invalid: something is missing, with what to do.
    """
    folder = Path(checkpoint)
    if not folder.exists():
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1:
            raise Invalid(f"model: no folder {checkpoint!r}; give a checkpoint folder or a hub name 'owner/name'")
        return
    missing = [name for name, patterns in _WANTED.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        raise Invalid(
            f"model: folder {checkpoint!r} lacks {', '.join(missing)}; write it with save_pretrained of model and "
            "processor"
        )
