"""Check of a checkpoint's folder by its file names, without loading it and without torch."""

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
    """Check that a local folder has config, weights, processor and tokenizer, or that a hub name looks like one.

    Raises:
        Invalid: no such folder, or files are missing.
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
