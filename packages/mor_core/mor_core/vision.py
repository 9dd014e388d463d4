"""Processing of a prompt into token ids and pixel values, the same in every process.

Engine and trainer must see the same pixels to the bit, whatever else is installed, so the image processor is the PIL
one. transformers is imported on use, as only processes that hold a model need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from mor_core.chat_template import chat_text
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.folder_links import check_checkpoint
from mor_core.special_tokens import begin_once, without_bos
from mor_core.wire import Message, image_hashes

_BEGINS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Processors that begin the text themselves, see ``_begins_text``."""


def load_processor(model: str) -> Any:
    """Load the checkpoint's ``AutoProcessor`` with its PIL image processor.

    Raises:
        Invalid: there is no processor under that path or name, or a link leads out of the folder.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    check_checkpoint(model)
    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        processor.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil", trust_remote_code=False)
        tokenizer = processor.tokenizer
    except Exception as error:  # parsers of a checkpoint's files raise anything, of tokenizers a bare Exception
        raise Invalid(
            f"model {model!r}: its processor cannot be loaded ({quote_failure(error)}); give an image-text-to-text"
            " checkpoint that has its processor files beside the weights"
        ) from error
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    if processor.chat_template is None:
        raise Invalid(
            f"model {model!r} ({type(processor).__name__}) has no chat template; add chat_template.jinja to the"
            " checkpoint, or use one that was tuned on conversations"
        )
    if tokenizer.eos_token_id is None:
        raise Invalid(f"model {model!r}: its tokenizer has no end-of-sequence token; set eos_token in its files")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def prompt_text(processor: Any, messages: tuple[Message, ...]) -> str:
    """Return the conversation in the checkpoint's chat template, with the cue for the assistant's turn.

    The processor's tokens begin with a beginning-of-sequence token once, if the checkpoint's tokenizer adds one, or its
    template or processor writes one.

    Raises:
        Invalid: the template refuses the roles, or leaves a turn out.
    """
    text = chat_text(processor, messages)
    tokenizer = processor.tokenizer
    return without_bos(tokenizer, text) if _begins_text(processor) else begin_once(tokenizer, text)


def _begins_text(processor: Any) -> bool:
    """Return whether the processor writes a beginning-of-sequence token, whatever its text begins with (PaliGemma)."""
    known = _BEGINS.get(processor)
    if known is None:
        known = _BEGINS[processor] = _try_beginning(processor)
    return known


def _try_beginning(processor: Any) -> bool:
    tokenizer = processor.tokenizer
    if tokenizer.bos_token is None:
        return False
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
    try:
        text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        text = tokenizer.bos_token + without_bos(tokenizer, text)
        outputs = processor(text=[text], images=[[Image.new("RGB", (64, 64))]], add_special_tokens=False)
    except Exception:  # a template or a processor that takes no picture in this form begins no text of its own
        return False
    written = tokenizer(text, add_special_tokens=False)["input_ids"].count(tokenizer.bos_token_id)
    return bool(list(outputs["input_ids"][0]).count(tokenizer.bos_token_id) > written)


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
        _check_masks(outputs)
    except Invalid:
        raise
    except Exception as error:  # each family's processor and chat template refuse in their own ways
        sizes = ", ".join(f"{picture.width} by {picture.height}" for picture in in_order)
        pictures = f" and sizes, in pixels, such as extreme proportions: {sizes}" if sizes else ""
        raise Invalid(
            f"the model's processor does not take this prompt ({describe_failure(error)}); check its roles and its"
            f" number of pictures{pictures}"
        ) from error
    # Some processors return bfloat16 (Llama 4), whatever type the model computes in.
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}


def _check_masks(outputs: Mapping[str, Any]) -> None:
    """Check that pixel values and their mask agree, which they do not for LFM2-VL's narrow pictures."""
    pixels, mask = outputs.get("pixel_values"), outputs.get("pixel_attention_mask")
    if pixels is not None and mask is not None and pixels.shape[:2] != mask.shape[:2]:
        raise ValueError("it made more pixel values of a picture than its mask covers")
