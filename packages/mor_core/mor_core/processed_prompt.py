"""A processor's output for a prompt, sorted by its shape, and its way into a batch with responses.

Trainer, engines and reward models share this module, so that whatever a processor returns travels with its prompt. An
output belongs to the tokens or to the pictures:

- Token inputs have a value for each token, such as ``token_type_ids`` or a cross-attention mask. A response continues
  them, and a batch pads them.
- Picture inputs have a row for each picture, crop or patch, such as pixel values or grids. A batch joins their rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mor_core.pixel_hash import pixel_sha256

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NOT_INPUTS = ("input_ids", "attention_mask", "labels")
"""Outputs that are rebuilt for each batch, or that belong to supervised training."""
_OF_PICTURES = ("pixel_", "image_", "video_", "patch_")
"""Prefixes of picture inputs. By shape alone, a picture of as many patches as the prompt has tokens would mislead."""
_REPEATED = ("cross_attention_mask",)
"""Token inputs of which a response's tokens have the value of the prompt's last token: they see the same pictures."""


@dataclass(frozen=True)
class ProcessedPrompt:
    """Output of the processor for one prompt."""

    token_ids: tuple[int, ...]
    """Prompt tokens, image placeholders expanded."""
    token_inputs: Mapping[str, Tensor]
    """By name ``[prompt, ...]``."""
    response_values: Mapping[str, Tensor]
    """Value ``[...]`` of each token input for the tokens of a response."""
    picture_inputs: Mapping[str, Tensor]
    """By name ``[rows, ...]``. Empty without pictures."""
    pixels: str | None
    """Hash of the processed pixel values."""

    @classmethod
    def of(cls, outputs: Mapping[str, Any]) -> ProcessedPrompt:
        """Sort the output of a processor for one prompt."""
        ids = outputs["input_ids"]
        tokens, pictures = {}, {}
        for name, value in outputs.items():
            if name in _NOT_INPUTS or not hasattr(value, "shape"):
                continue
            if value.shape[:2] == ids.shape and not name.startswith(_OF_PICTURES):
                tokens[name] = value[0]
            else:
                pictures[name] = value
        # A processor that returns labels tells a prefix, which sees all of itself, from a causal suffix (PaliGemma).
        prefix = "labels" in outputs
        return cls(
            token_ids=tuple(ids[0].tolist()),
            token_inputs=tokens,
            response_values={name: _response_value(name, value, prefix) for name, value in tokens.items()},
            picture_inputs=pictures,
            pixels=pixel_sha256(outputs),
        )

    @property
    def pictures_key(self) -> tuple[Hashable, ...]:
        """Key of the pictures: the hash of their pixels, and their sizes. Blank pages of any size share the former."""
        sizes = (value for name, value in self.picture_inputs.items() if not name.startswith("pixel_"))
        shapes = tuple((name, tuple(value.shape)) for name, value in self.picture_inputs.items())
        return self.pixels, shapes, tuple(value.numpy().tobytes() for value in sizes)

    @property
    def nbytes(self) -> int:
        tensors = (*self.token_inputs.values(), *self.picture_inputs.values())
        return 8 * len(self.token_ids) + sum(tensor.nbytes for tensor in tensors)

    def without_pixels(self) -> ProcessedPrompt:
        """Return the prompt without pixel values and their masks, for use with picture features."""
        kept = {name: value for name, value in self.picture_inputs.items() if not name.startswith("pixel_")}
        return replace(self, picture_inputs=kept)


def _response_value(name: str, values: Tensor, prefix: bool) -> Tensor:
    if name in _REPEATED:
        return values[-1]
    import torch

    return torch.full_like(values[-1], int(prefix and name == "token_type_ids"))


def continued_token_inputs(prompts: Sequence[ProcessedPrompt], width: int, device: torch.device) -> dict[str, Tensor]:
    """Return each token input as ``[prompts, width, ...]``, continued over responses and padding on the right.

    A prompt that lacks an input which another one has, such as one without pictures, has zeros.
    """

    inputs: dict[str, Tensor] = {}
    for name in _names(prompt.token_inputs for prompt in prompts):
        example = next(prompt.token_inputs[name] for prompt in prompts if name in prompt.token_inputs)
        whole = example.new_zeros(len(prompts), width, *example.shape[1:])
        for row, prompt in zip(whole, prompts, strict=True):
            if name in prompt.token_inputs:
                row[: len(prompt.token_ids)] = prompt.token_inputs[name]
                row[len(prompt.token_ids) :] = prompt.response_values[name]
        inputs[name] = whole.to(device)
    return inputs


def joined_picture_inputs(prompts: Sequence[ProcessedPrompt], device: torch.device) -> dict[str, Tensor]:
    """Return each picture input with the rows of all prompts, in order."""
    import torch

    return {
        name: torch.cat([prompt.picture_inputs[name] for prompt in prompts if name in prompt.picture_inputs]).to(device)
        for name in _names(prompt.picture_inputs for prompt in prompts)
    }


def repeated(outputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return a processor's output as if it had processed its prompt ``times`` times in one batch.

    transformers' ``num_return_sequences`` repeats each row instead: right for tokens, but of two pictures the first
    would come twice before the second.
    """
    import torch

    return {name: torch.cat([value] * times) for name, value in outputs.items() if name != "labels"}


def _names(inputs: Any) -> list[str]:
    """Return the names in all of ``inputs``, in order of appearance."""
    return list(dict.fromkeys(name for names in inputs for name in names))
