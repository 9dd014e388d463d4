"""The processor call of this service: token ids, image tokens and pixels of a prompt; ids that end a response."""

from __future__ import annotations

from typing import Any

from mor_core import vision
from mor_core.errors import Invalid
from mor_core.pixel_hash import pixel_sha256
from mor_core.sampling import forbidden_token_ids

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import Shown
from mor_rollout.weights.base import BaseModel

IMAGE_FIELDS = ("pixel_values", "pixel_values_videos")


class PromptEncoder:
    """The checkpoint's processor and what follows from it.

    Raises:
        Invalid: the checkpoint has no processor.
    """

    def __init__(self, settings: RolloutSettings, base: BaseModel) -> None:
        self._max_model_len = settings.max_model_len
        self._max_images = settings.max_images
        self.processor = vision.load_processor(str(base.folder))
        self.forbidden = forbidden_token_ids(self.processor, base.vocabulary_size)
        self.stops = _stop_token_ids(self.processor, base)
        self._placeholder = _placeholder(self.processor)

    def encode(self, shown: Shown) -> tuple[dict[str, Any], tuple[int, ...], int, str | None]:
        """Model inputs as tensors, prompt ids, placeholder count and pixel hash.

        Raises:
            Invalid: too many images, or too long to leave room for a response.
        """
        images = sum(len(message.image_hashes) for message in shown.messages)
        if images > self._max_images:
            raise Invalid(f"the prompt has {images} images, at most {self._max_images} are taken (MOR_MAX_IMAGES)")
        inputs = vision.encode_prompt(self.processor, shown.messages, shown.images)
        token_ids = tuple(inputs["input_ids"][0].tolist())
        if len(token_ids) >= self._max_model_len:
            raise Invalid(
                f"the prompt has {len(token_ids)} tokens, prompt and response may have {self._max_model_len} together;"
                " shorten the prompt or raise MOR_MAX_MODEL_LEN"
            )
        pixels = pixel_sha256(inputs[name] for name in IMAGE_FIELDS if name in inputs)
        return inputs, token_ids, token_ids.count(self._placeholder), pixels

    def decode(self, token_ids: tuple[int, ...]) -> str:
        return str(self.processor.tokenizer.decode(token_ids, skip_special_tokens=True))


def _stop_token_ids(processor: Any, base: BaseModel) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end of sequence and those of ``generation_config.json``."""
    from transformers import GenerationConfig

    stops = {processor.tokenizer.eos_token_id}
    if (base.folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(base.folder).eos_token_id
        stops |= set(named if isinstance(named, list) else [named])
    stops.discard(None)
    if not stops:
        raise Invalid(
            f"model {base.model!r}: neither tokenizer nor generation_config.json names an end-of-sequence token"
        )
    return tuple(sorted(stops))


def _placeholder(processor: Any) -> int | None:
    placeholder = getattr(processor, "image_token_id", None)
    if placeholder is None and getattr(processor, "image_token", None) is not None:
        placeholder = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    return placeholder
