"""Reward models behind one seam: a backbone scores a batch of (messages, pictures, response).

Each kind is one file with a typed configuration; ``kind`` tells them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mor_core.errors import Invalid
from pydantic import Field

from mor_reward.backbones.base import Backbone, Example, Picture, Scorer
from mor_reward.backbones.dual_encoder import DualEncoder, DualEncoderConfig
from mor_reward.backbones.function import FunctionScorer
from mor_reward.backbones.text import TextClassifier, TextConfig
from mor_reward.backbones.vlm import Vlm, VlmConfig

__all__ = [
    "AnyConfig",
    "Backbone",
    "DualEncoderConfig",
    "Example",
    "FunctionScorer",
    "Picture",
    "Scorer",
    "TextConfig",
    "VlmConfig",
    "build",
    "on_device",
]

AnyConfig = Annotated[VlmConfig | DualEncoderConfig | TextConfig, Field(discriminator="kind")]


def build(config: VlmConfig | DualEncoderConfig | TextConfig, root: Path, *, pretrained: bool) -> Backbone:
    """The backbone that ``config`` describes; paths in it are relative to ``root``.

    ``pretrained`` loads the weights of the checkpoints that it names, else only their architectures are built.

    Raises:
        Invalid: a checkpoint cannot be loaded.
    """
    match config:
        case VlmConfig():
            return Vlm(config, root, pretrained)
        case DualEncoderConfig():
            return DualEncoder(config, root, pretrained)
        case TextConfig():
            return TextClassifier(config, root, pretrained)


def on_device(backbone: Backbone, device: str) -> Backbone:
    """``backbone`` moved to a device as torch names it.

    Raises:
        Invalid: there is no such device here.
    """
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Invalid(f"device {device!r}: {reason}; name one that torch has here, such as cpu or cuda") from error
