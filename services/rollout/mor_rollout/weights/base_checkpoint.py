"""The base checkpoint, with which the engine starts and whose tensors published weights replace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.model_family import picture_placeholder
from mor_core.vllm_families import has_states
from mor_core.weight_files import weight_files

from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.checkpoint_files import TensorSource


class BaseCheckpoint:
    """Checkpoint folder and its tensors.

    Raises:
        Invalid: there is no such checkpoint.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.folder = checkpoint_files.resolve(model)
        self.tensors: Mapping[str, TensorSource] = checkpoint_files.model_tensors(self.folder)
        self.digest = checkpoint_files.digest({name: source.checksum for name, source in self.tensors.items()})

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def family(self) -> str:
        """Name of the architecture, as ``qwen2_5_vl``."""
        return str(self.config.model_type)

    @property
    def architecture(self) -> str:
        """Class of the model, as the configuration names it."""
        return str(next(iter(self.config.architectures or ()), "a model without a class"))

    @property
    def placeholder(self) -> int | None:
        """Token that the model replaces by a picture's features."""
        return picture_placeholder(self.config)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """End-of-sequence tokens that the configuration names, for the whole model or its language model."""
        stated = json.loads((self.folder / "config.json").read_text())
        named = [part.get("eos_token_id") for part in (stated, stated.get("text_config") or {})]
        listed = [token for entry in named for token in (entry if isinstance(entry, list) else [entry])]
        return tuple(token for token in listed if isinstance(token, int))

    @property
    def has_states(self) -> bool:
        """True if some layers carry a state from token to token instead of attending."""
        return has_states(self.config)

    @cached_property
    def config(self) -> Any:
        """Configuration, as transformers reads it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder)

    def link_model_files(self, target: Path) -> Path:
        """Return a folder with this checkpoint's files and no other weights: its own, or links in ``target`` to them.

        vLLM reads each ``*.safetensors`` of a folder that has no index.
        """
        weights = {file.name for file in weight_files(self.folder)}
        strays = {file.name for file in self.folder.glob("*.safetensors")} - weights
        if not strays:
            return self.folder
        target.mkdir(parents=True, exist_ok=True)
        for link in target.iterdir():
            link.unlink()
        for file in self.folder.iterdir():
            if file.is_file() and file.name not in strays:
                (target / file.name).symlink_to(file)
        return target

    def is_same(self, model: str) -> bool:
        """Return whether ``model`` is this checkpoint: the same name, the same folder, or a copy of its files."""
        if model == self.model:
            return True
        folder = Path(model).expanduser()
        if not folder.is_dir():
            return False
        folder = folder.resolve()
        if folder == self.folder:
            return True
        try:
            same_files = _sizes(folder) == _sizes(self.folder) and _config(folder) == _config(self.folder)
            return same_files and _digest(folder) == self.digest
        except Invalid:  # a folder without a model, or with a damaged one
            return False

    def check_replaceable(self, tensors: Mapping[str, TensorSource]) -> None:
        """Check that the base has every tensor under the same name and in the same shape.

        Raises:
            Invalid: a name or a shape differs.
        """
        for name, source in tensors.items():
            known = self.tensors.get(name)
            if known is None:
                raise Invalid(f"the base has no tensor {name!r}; publish tensors under the base's own names")
            if known.shape != source.shape:
                raise Invalid(
                    f"tensor {name!r} has shape {source.shape}, the base's has {known.shape}; publish that shape"
                )


def _sizes(folder: Path) -> list[tuple[str, int]]:
    """List names and sizes. Anybody can name a folder, so that its bytes are hashed only where these are equal."""
    files = [file for file in (folder / "config.json", *sorted(weight_files(folder))) if file.is_file()]
    return [(file.name, file.stat().st_size) for file in files]


def _config(folder: Path) -> bytes:
    return (folder / "config.json").read_bytes()


@cache
def _digest(folder: Path) -> str:
    return checkpoint_files.digest(
        {name: source.checksum for name, source in checkpoint_files.model_tensors(folder).items()}
    )
