"""Reward models with one interface: a backbone scores a batch of (messages, pictures, response).

Each kind is one file with a typed configuration, discriminated by ``kind``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from pydantic import Field

from mor_reward.backbones.backbone import Backbone, Example, Picture, PictureRefused, Scorer
from mor_reward.backbones.dual_encoder import DualEncoder, DualEncoderConfig
from mor_reward.backbones.text import TextClassifier, TextConfig
from mor_reward.backbones.vlm import Vlm, VlmConfig

__all__ = [
    "AnyConfig",
    "Backbone",
    "DualEncoderConfig",
    "Example",
    "Picture",
    "PictureRefused",
    "Scorer",
    "TextConfig",
    "VlmConfig",
    "build",
    "on_device",
]

AnyConfig = Annotated[VlmConfig | DualEncoderConfig | TextConfig, Field(discriminator="kind")]


def build(config: VlmConfig | DualEncoderConfig | TextConfig, root: Path, *, pretrained: bool) -> Backbone:
    """Build the backbone that ``config`` describes; its paths are relative to ``root``.

    With ``pretrained``, load the weights of its checkpoints; otherwise build only their architectures.

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
    """Move ``backbone`` to a torch device.

    Raises:
        Invalid: this machine has no such device.
    """
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = quote_failure(error)
        raise Invalid(
            f"device {device!r}: {reason}; give a device that torch has on this machine, such as cpu or cuda"
        ) from error
