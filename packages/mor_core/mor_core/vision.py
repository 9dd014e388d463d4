"""The processor call, one definition for every process that turns a prompt into token ids and pixel values.

Engine and trainer must see the same pixels to the bit, whatever else is installed, so the image processor is the PIL
one. transformers is imported on use: only processes that hold a model need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from mor_core.errors import Invalid
from mor_core.wire import Message, chat_template_messages, image_hashes


def load_processor(model: str) -> Any:
    """The checkpoint's ``AutoProcessor`` with its PIL image processor.

    Raises:
        Invalid: there is no processor under that path or name.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model)
        processor.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError, AttributeError) as error:
        raise Invalid(
            f"model {model!r}: its processor cannot be loaded ({error}); give an image-text-to-text checkpoint that"
            " has its processor files beside the weights"
        ) from error
    return processor


def prompt_text(processor: Any, messages: tuple[Message, ...]) -> str:
    """The conversation in the checkpoint's chat template, with the cue for the assistant's turn."""
    return str(
        processor.apply_chat_template(chat_template_messages(messages), tokenize=False, add_generation_prompt=True)
    )


def encode_prompt(processor: Any, messages: tuple[Message, ...], images: Mapping[str, Image.Image]) -> dict[str, Any]:
    """The model's inputs for a conversation: ``input_ids`` ``[1, prompt]`` and what goes with its images, as tensors.

    ``images`` are by hash, decoded by ``mor_core.images.decode``. The template writes every special token, so the
    tokenizer adds none.
    """
    shown = [images[digest] for digest in image_hashes(messages)]
    return dict(
        processor(
            text=[prompt_text(processor, messages)],
            images=[shown] if shown else None,
            add_special_tokens=False,
            return_tensors="pt",
        )
    )
