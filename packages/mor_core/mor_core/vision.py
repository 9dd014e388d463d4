"""Processing of a prompt into token ids and pixel values, the same in every process.

Engine and trainer must see the same pixels to the bit, whatever else is installed, so the image processor is the PIL
one. transformers is imported on use, as only processes that hold a model need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.wire import Message, chat_template_messages, image_hashes


def load_processor(model: str) -> Any:
    """Load the checkpoint's ``AutoProcessor`` with its PIL image processor.

    Raises:
        Invalid: there is no processor under that path or name.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model)
        processor.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError, AttributeError) as error:
        raise Invalid(
            f"model {model!r}: its processor cannot be loaded ({quote_failure(error)}); give an image-text-to-text"
            " checkpoint that has its processor files beside the weights"
        ) from error
    return processor


def prompt_text(processor: Any, messages: tuple[Message, ...]) -> str:
    """Return the conversation in the checkpoint's chat template, with the cue for the assistant's turn."""
    return str(
        processor.apply_chat_template(chat_template_messages(messages), tokenize=False, add_generation_prompt=True)
    )


def encode_prompt(processor: Any, messages: tuple[Message, ...], images: Mapping[str, Image.Image]) -> dict[str, Any]:
    """Return the model's inputs for a conversation as tensors: ``input_ids`` ``[1, prompt]`` and its images' inputs.

    ``images``: by hash, decoded by ``mor_core.images.decode``. The template writes every special token, so the
    tokenizer adds none.

    Raises:
        Invalid: the processor refuses a text or a picture, such as one that is a hundred times wider than high.
    """
    in_order = [images[digest] for digest in image_hashes(messages)]
    try:
        outputs = processor(
            text=[prompt_text(processor, messages)],
            images=[in_order] if in_order else None,
            add_special_tokens=False,
            return_tensors="pt",
        )
    except Exception as error:  # each family's processor and chat template refuse in their own ways
        raise Invalid(
            f"the model's processor does not take this prompt ({describe_failure(error)}); leave out its special"
            " tokens, such as <image>, and pictures with extreme proportions"
        ) from error
    # Some processors return bfloat16 (Llama 4), whatever type the model computes in.
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}
