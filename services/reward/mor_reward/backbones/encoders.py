"""Pretrained image and text encoders, loaded by path or hub name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from mor_core.errors import Invalid, MorError
from mor_core.failures import quote_failure
from mor_core.folder_links import check_model_folder
from mor_core.model_family import check_complete
from mor_core.special_tokens import escape_control
from mor_core.weight_files import check_unambiguous
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer

_KINDS = {
    "AutoModelForImageTextToText": "vlm, which needs an image-text-to-text model; give one, or --backbone text",
    "AutoModelForSequenceClassification": "text, which needs a model of text alone; give one, or --backbone vlm",
}
"""Class that loads a checkpoint -> the backbone that asks for it, and what to do about a checkpoint of another kind."""
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def load_model(
    auto: Any, name: str, root: Path, pretrained: bool, role: str, *, headless: bool = True, **changes: Any
) -> Any:
    """Load a Hugging Face model by path under ``root`` or hub name; without ``pretrained``, only its architecture.

    Weights are float32. ``headless``: accept a checkpoint without head or pooler. ``changes`` override its
    configuration.

    Raises:
        Invalid: the checkpoint does not exist, is of another kind or lacks tensors, or a link leads out of its folder.
    """
    local = root / name
    place = str(local) if local.exists() else name
    check_model_folder(place)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **changes)
        if type(config) not in auto._model_mapping and auto.__name__ in _KINDS:
            raise Invalid(
                f"{role} {name!r} is of family {config.model_type!r}, and does not fit the backbone "
                f"{_KINDS[auto.__name__]}"
            )
        if pretrained:
            check_unambiguous(Path(place))
            model, report = auto.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
            check_complete(name, report, headless=headless)
            return model
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except MorError:
        raise
    except Exception as error:  # a library that reads files of others may raise anything
        reason = quote_failure(error)
        raise Invalid(
            f"{role} {name!r} cannot be loaded: {reason}; give the folder of a Hugging Face checkpoint "
            "(with config.json and model.safetensors) or a hub name"
        ) from error


def load_tokenizer(name: str, root: Path) -> Any:
    local = root / name
    try:
        return AutoTokenizer.from_pretrained(str(local) if local.exists() else name, trust_remote_code=False)
    except Exception as error:  # parsers of its files raise anything, of tokenizers a bare Exception
        raise Invalid(
            f"{name!r} has no tokenizer that can be loaded ({quote_failure(error)}); tokenizer.json is wanted"
        ) from error


class PretrainedImageEncoder(nn.Module):
    """Image encoder that returns patch features: DINOv2, SigLIP, CLIP, or any timm network by TimmWrapper.

    Pictures are stretched to a square, so that nothing is cropped away. Features of ``layers`` (indices of hidden
    states) are concatenated; maps of convolutional layers are pooled to the grid of the first of them.
    """

    def __init__(self, name: str, root: Path, pretrained: bool, size: int, layers: Sequence[int]) -> None:
        super().__init__()
        model = load_model(AutoModel, name, root, pretrained, "image encoder")
        # On CPUs, convolutions are up to twice as fast with channels last.
        self.model = getattr(model, "vision_model", model).to(memory_format=torch.channels_last)
        _delete_unused_layers(self.model, layers)
        self.size = size
        self.layers = tuple(layers)
        self.normalisation = _normalisation(name, root)
        # Plain tensors: they stay in float32 on the CPU, which decodes the pictures.
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in self.normalisation.values())
        try:
            with torch.no_grad():
                self.patches, self.dim = self.eval()(torch.zeros(1, 3, size, size)).shape[1:]
        except Exception as error:  # the code of a family may raise anything
            raise Invalid(
                f"image encoder {name!r} is of family {model.config.model_type!r} and takes no picture of {size} by "
                f"{size} pixels ({quote_failure(error)}); give --vision an image encoder, as of DINOv2, SigLIP or CLIP"
            ) from error

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        square = (self.size, self.size)
        resized = image if image.size == square else image.resize(square, Image.Resampling.BICUBIC)
        array = torch.from_numpy(np.array(resized, dtype=np.float32)).permute(2, 0, 1) / 255
        return (array - self._mean) / self._std

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches dim"]:
        parameter = next(self.model.parameters())
        inputs = pixels.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
        out = self.model(inputs, output_hidden_states=True)
        chosen = [out.last_hidden_state if layer == -1 else out.hidden_states[layer] for layer in self.layers]
        if chosen[0].dim() == 4:
            grid = chosen[0].shape[-2:]
            chosen = [functional.adaptive_avg_pool2d(layer, grid).flatten(2).transpose(1, 2) for layer in chosen]
        return torch.cat(chosen, dim=-1)

    def export(self, folder: Path) -> None:
        import json

        self.model.config.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(self.normalisation))


def _delete_unused_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Delete the layers above the deepest of ``layers``, if all indices count from the first layer.

    One more layer stays, because some families return the last hidden state as their normalised output.
    """
    if min(layers) < 0:
        return
    for stack in getattr(model, "encoder", nn.Module()).children():
        if isinstance(stack, nn.ModuleList):
            del stack[max(layers) + 1 :]


def _normalisation(name: str, root: Path) -> dict[str, list[float]]:
    """Return the mean and standard deviation of pixels that the encoder was trained with."""
    import json

    from transformers.utils import cached_file

    local = root / name
    place = str(local) if local.exists() else name
    file = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    saved = json.loads(Path(file).read_text()) if file else {}
    return {key: [float(number) for number in saved.get(key, default)] for key, default in _IMAGENET.items()}


class PretrainedTextEncoder(nn.Module):
    """Text encoder, such as MiniLM or BERT, that returns token features."""

    def __init__(self, name: str, root: Path, pretrained: bool) -> None:
        super().__init__()
        self.model = load_model(AutoModel, name, root, pretrained, "text encoder")
        self.tokenizer = load_tokenizer(name, root)
        if not isinstance(dim := getattr(self.model.config, "hidden_size", None), int):
            raise Invalid(
                f"text encoder {name!r} is of family {self.model.config.model_type!r}, which is no encoder of text "
                "alone; give --text one, as of MiniLM or BERT"
            )
        self.dim: int = dim

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(escape_control(self.tokenizer, text), truncation=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def forward(
        self, texts: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.full((len(texts), int(lengths.max())), self.tokenizer.pad_token_id or 0)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        hidden = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        return hidden, mask.to(device)

    def export(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
