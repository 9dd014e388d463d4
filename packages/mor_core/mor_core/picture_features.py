"""Picture features: the output of a model's vision tower, computed apart from its language model and used again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_INTERMEDIATE = frozenset({"hidden_states", "attentions"})
"""Fields of a tower's output that no language model reads."""
_POOLED = "pooler_output"
_UNPOOLED = "last_hidden_state"
"""Read by a language model only where there is no ``pooler_output`` (Llama 4)."""
_BY_PICTURE = frozenset({_POOLED, _UNPOOLED})


@dataclass(frozen=True)
class PictureFeatures:
    """Features of a prompt's pictures: the fields of the model's ``get_image_features`` that its language model reads.

    A tree of tensors. ``pooler_output`` is one tensor with a row for each picture or crop, or a sequence with a tensor
    for each picture. In another field, such as ``deepstack_features``, a sequence has an entry for each layer.
    """

    fields: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in _tensors(list(self.fields.values())))

    @property
    def rows(self) -> int:
        """Number of placeholder tokens that the features stand for."""
        return sum(tensor[..., 0].numel() for name in _BY_PICTURE for tensor in _tensors(self.fields.get(name)))


def takes_features(model: Any) -> bool:
    """Return whether a model takes features in place of pixel values.

    A model that does not (transformers before 5.18, or custom code) would drop them unseen in its ``**kwargs`` and
    compute without the picture.
    """
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def encode_pictures(model: Any, picture_inputs: Mapping[str, Tensor]) -> PictureFeatures:
    """Compute the features of pictures. Of ``picture_inputs``, on the model's device, its tower takes what it names."""
    accepted = inspect.signature(model.get_image_features).parameters
    output = model.get_image_features(
        **{name: value for name, value in picture_inputs.items() if name in accepted}, return_dict=True
    )
    unused = _INTERMEDIATE if output.get(_POOLED) is None else _INTERMEDIATE | {_UNPOOLED}
    return PictureFeatures({name: value for name, value in output.items() if name not in unused and value is not None})


def join_features(features: Sequence[PictureFeatures]) -> dict[str, Any] | None:
    """Join the features of a batch of prompts, in order, into a model's ``mm_encoder_outputs``; ``None`` of none."""
    if not features:
        return None
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    joined = BaseModelOutputWithPooling()
    for name in features[0].fields:
        parts = [item.fields[name] for item in features]
        by_layer = name not in _BY_PICTURE and isinstance(parts[0], list | tuple)
        joined[name] = [_join(layer) for layer in zip(*parts, strict=True)] if by_layer else _join(parts)
    return {"image": joined}


def divide_features(features: PictureFeatures, parts: int) -> list[PictureFeatures] | None:
    """Divide the features of ``parts`` prompts whose pictures have the same sizes; ``None`` if they do not divide.

    The parts are copies, so that none keeps the memory of the others.
    """
    divided: list[dict[str, Any]] = [{} for _ in range(parts)]
    for name, value in features.fields.items():
        if name not in _BY_PICTURE:
            if not isinstance(value, list | tuple):
                return None  # not known to be one for each picture
            layers = [_divide(layer, parts) for layer in value]
            if None in layers:
                return None
            shares: Any = list(zip(*layers, strict=True))
        elif (shares := _divide(value, parts)) is None:
            return None
        for fields, share in zip(divided, shares, strict=True):
            fields[name] = share
    return [PictureFeatures(fields) for fields in divided]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)
    elif hasattr(tree, "nbytes"):
        yield tree


def _join(parts: Sequence[Any]) -> Any:
    """Join what several prompts have in one place of the tree."""
    first = parts[0]
    if not isinstance(first, list | tuple):
        if not hasattr(first, "nbytes"):
            return first  # a number of the model, such as the layer to add features to
        import torch

        return torch.cat(list(parts))
    if all(hasattr(branch, "nbytes") for branch in first):
        return [picture for part in parts for picture in part]
    return type(first)(_join(branches) for branches in zip(*parts, strict=True))


def _divide(value: Any, parts: int) -> list[Any] | None:
    """Divide a tensor by its rows, or the tensors of several pictures; ``None`` if they do not divide equally."""
    if not isinstance(value, list | tuple):
        if not hasattr(value, "nbytes") or len(value) % parts:
            return None
        return [share.clone() for share in value.chunk(parts)]
    if len(value) % parts or not all(hasattr(picture, "nbytes") for picture in value):
        return None
    each = len(value) // parts
    copies = [picture.clone() for picture in value]
    return [tuple(copies[start : start + each]) for start in range(0, len(copies), each)]
