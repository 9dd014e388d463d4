"""Any Hugging Face image-text-to-text model with a scalar head on the last token's hidden state."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from mor_core.errors import Invalid, MorError
from mor_core.failures import quote_failure
from mor_core.wire import chat_template_messages
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from mor_reward.backbones import adapters
from mor_reward.backbones.backbone import (
    Backbone,
    BackboneConfig,
    Example,
    Picture,
    Precision,
    resolve_precision,
    too_long_to_tokenize,
)
from mor_reward.backbones.encoders import load_model
from mor_reward.backbones.vision_features import ENCODED_TOGETHER, Features, VisionFeatures

_PROMPTS_KEPT = 4096
"""Tokenised prompts kept: a few MB of token ids."""


class VlmConfig(BackboneConfig):
    """Configuration of a vision-language model whose decoder, or an adapter of it, is trained with the head."""

    kind: Literal["vlm"] = "vlm"
    model: str
    """Checkpoint of an image-text-to-text model with its processor: folder or hub name."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters on the decoder's linear layers; 0 trains the decoder in full."""
    freeze_vision: bool = True
    """Freeze the image encoder and its projection, so that each picture is encoded once."""
    likelihood: float = Field(0.0, ge=0)
    """Initial weight, then trained, of the response's log-likelihood (nats) in the score; 0 omits the term."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the last hidden state dropped before the head in training."""
    max_length: int = Field(1024, ge=8)
    """Maximum tokens of prompt and response together, with picture placeholders; longer ones are not scored."""
    max_images: int = Field(8, ge=1)
    """Maximum pictures of one prompt; a prompt with more is not scored."""
    precision: Precision = "auto"
    """Type in which the model computes; its weights stay float32. ``auto`` is bfloat16 if the hardware supports it."""


class Vlm(Backbone):
    """r = w·h + b + a·log p(response), with h the last hidden state after prompt, response and end-of-sequence token.

    The likelihood preserves knowledge of the checkpoint about pictures that the preferences do not cover; training it
    is direct preference optimisation (Rafailov et al. 2023) without the reference term. With a = 0 only h is used.
    Responses to one prompt share its prefix: picture and prompt are computed once for all of them.
    """

    def __init__(self, config: VlmConfig, root: Path, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        full = load_model(AutoModelForImageTextToText, config.model, root, pretrained, "model")
        self.model: Any = full.base_model
        if full is self.model or "mm_encoder_outputs" not in inspect.signature(self.model.forward).parameters:
            raise Invalid(
                f"model {config.model!r}: {type(full).__name__} does not accept precomputed picture features; "
                "use another image-text-to-text architecture (LLaVA, Idefics3, SmolVLM, Qwen-VL, Gemma 3, ...)"
            )
        self.processor = _load_processor(config.model, root)
        self.tokenizer = self.processor.tokenizer
        text_config = self.model.config.get_text_config()
        self.head = nn.Linear(text_config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.dropout = nn.Dropout(config.dropout)
        if config.likelihood:
            self.vocabulary = full.get_output_embeddings()
            self.likelihood = nn.Parameter(torch.tensor(config.likelihood))
        self.precision = resolve_precision(config.precision)
        # The model derives multi-axis rotary positions from the whole sequence.
        rope = getattr(text_config, "rope_parameters", None) or {}
        self.shares_prefix = "mrope_section" not in str(rope)
        decoder = self.model.get_decoder()
        if self.precision == torch.bfloat16 and not torch.cuda.is_available():
            # On CPUs the fused kernel's backward pass in bfloat16 takes longer than all of eager attention.
            decoder.set_attn_implementation("eager")
        if config.freeze_vision:
            self.model.requires_grad_(False).to(self.precision)
            decoder.requires_grad_(True).to(torch.float32)
        if pretrained and config.lora_rank:
            adapters.add_adapters(decoder, config.lora_rank)
            if config.likelihood:
                self.vocabulary.requires_grad_(False)
        self._vision = VisionFeatures(self.model)
        self._prompts: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    def train(self, mode: bool = True) -> Vlm:
        super().train(mode)
        if self.config.freeze_vision:
            self.model.eval()
            self.model.get_decoder().train(mode)
        return self

    def merge_adapters(self) -> None:
        adapters.merge_adapters(self.model.get_decoder())

    def unscorable_reason(self, example: Example) -> str | None:
        if len(example.pictures) > self.config.max_images:
            return f"{len(example.pictures)} pictures; this model reads at most {self.config.max_images} in a prompt"
        characters = sum(len(message.text) for message in example.messages) + len(example.response)
        if (reason := too_long_to_tokenize("prompt and response have", characters, self.config.max_length)) is not None:
            return reason
        try:
            prompt = self._prompt(example)
        except MorError as error:
            return str(error)
        length = prompt["input_ids"].shape[1] + len(self._response(example.response))
        if length > self.config.max_length:
            return f"prompt and response have {length} tokens; this model reads at most {self.config.max_length}"
        return None

    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        contexts = list({example.context: example for example in batch}.values())
        number = {example.context: index for index, example in enumerate(contexts)}
        rows = [number[example.context] for example in batch]
        responses = [self._response(example.response) for example in batch]
        with self._autocast():
            run = self._shared_prefix if self.shares_prefix else self._whole_sequences
            hidden = run(contexts, rows, responses).float()
        lengths = torch.tensor([len(response) for response in responses], device=hidden.device)
        last = hidden[torch.arange(len(rows), device=hidden.device), lengths]
        scores: Tensor = self.head(self.dropout(last)).squeeze(-1)
        if self.config.likelihood:
            scores = scores + self.likelihood * self._log_likelihood(hidden[:, :-1], responses)
        return scores

    def _log_likelihood(
        self, hidden: Float[Tensor, "rows tokens hidden"], responses: Sequence[Tensor]
    ) -> Float[Tensor, " rows"]:
        """Sum the log-probabilities of a response's tokens, given the hidden state before each."""
        tokens = pad_sequence(list(responses), batch_first=True, padding_value=-100).to(hidden.device)
        logits = self.vocabulary(hidden)
        losses = functional.cross_entropy(logits.transpose(1, 2), tokens, ignore_index=-100, reduction="none")
        return -losses.sum(1)

    def _autocast(self) -> torch.autocast:
        device = self.head.weight.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def _shared_prefix(
        self, contexts: Sequence[Example], rows: Sequence[int], responses: Sequence[Tensor]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """Compute the hidden states before the response and at each of its tokens, each context once."""
        prompts = [self._prompt(example) for example in contexts]
        prefixes = [prompt["input_ids"][0] for prompt in prompts]
        device = self.head.weight.device
        ids = pad_sequence(prefixes, batch_first=True, padding_side="left").to(device)
        mask = pad_sequence([torch.ones_like(prefix) for prefix in prefixes], batch_first=True, padding_side="left")
        mask = mask.to(device)
        cache = DynamicCache(config=self.model.config.get_text_config())
        before = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            mm_encoder_outputs=self._vision.merge(self._image_features(contexts)),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1:]
        index = torch.tensor(rows, device=device)
        cache.batch_select_indices(index)
        tokens = pad_sequence(list(responses), batch_first=True).to(device)
        lengths = torch.tensor([len(response) for response in responses], device=device)
        steps = torch.arange(tokens.shape[1], device=device)
        hidden = self.model(
            input_ids=tokens,
            attention_mask=torch.cat([mask[index], (steps < lengths[:, None]).long()], dim=1),
            position_ids=mask[index].sum(1, keepdim=True) + steps,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return torch.cat([before[index], hidden], dim=1)

    def _whole_sequences(
        self, contexts: Sequence[Example], rows: Sequence[int], responses: Sequence[Tensor]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """Compute the same from whole sequences, for models that derive positions themselves."""
        prompts = [self._prompt(contexts[row]) for row in rows]
        device = self.head.weight.device
        inputs: dict[str, Tensor] = {}
        for name in prompts[0].keys() - VisionFeatures.INPUTS:
            values = [prompt[name] for prompt in prompts]
            if values[0].shape[:2] == prompts[0]["input_ids"].shape:
                tails = [response if name == "input_ids" else torch.zeros_like(response) for response in responses]
                whole = [torch.cat([value[0], tail.to(value)]) for value, tail in zip(values, tails, strict=True)]
                inputs[name] = pad_sequence(whole, batch_first=True).to(device)
            else:
                inputs[name] = torch.cat(values).to(device)
        starts = torch.tensor([prompt["input_ids"].shape[1] for prompt in prompts], device=device)
        lengths = torch.tensor([len(response) for response in responses], device=device)
        width = int((starts + lengths).max())
        inputs["attention_mask"] = (torch.arange(width, device=device) < (starts + lengths)[:, None]).long()
        features = self._image_features(contexts)
        hidden = self.model(
            **inputs, mm_encoder_outputs=self._vision.merge([features[row] for row in rows]), use_cache=False
        ).last_hidden_state
        steps = torch.arange(int(lengths.max()) + 1, device=device)
        positions = (starts[:, None] - 1 + steps).clamp(max=width - 1)
        return torch.take_along_dim(hidden, positions[..., None], dim=1)

    def precompute_features(self, examples: Sequence[Example]) -> Iterator[int]:
        if not self.config.freeze_vision:
            return
        self.eval()
        shown = list({example.pictures: example for example in examples if example.pictures}.values())
        for start in range(0, len(shown), ENCODED_TOGETHER):
            with torch.no_grad(), self._autocast():
                encoded = self._image_features(shown[start : start + ENCODED_TOGETHER])
            yield from (features.nbytes for features in encoded if features is not None)

    def export(self, folder: Path) -> VlmConfig:
        self.model.config.save_pretrained(folder / "model")
        self.processor.save_pretrained(folder / "model")
        return self.config.model_copy(update={"model": "model", "lora_rank": 0})

    def _image_features(self, contexts: Sequence[Example]) -> list[Features | None]:
        """Return the features of each context, ``None`` without a picture. Uncached contexts are encoded together."""
        frozen = self.config.freeze_vision
        keys = [("pictures", *(picture.sha256 for picture in example.pictures)) for example in contexts]
        found: dict[Hashable, Features | None] = {
            key: self.features.get(key) if frozen and example.pictures else None
            for key, example in zip(keys, contexts, strict=True)
        }
        wanted = {key: example for key, example in zip(keys, contexts, strict=True) if example.pictures}
        missing = [key for key in wanted if found[key] is None]
        for start in range(0, len(missing), ENCODED_TOGETHER):
            chunk = missing[start : start + ENCODED_TOGETHER]  # bounds the memory for pixels
            processed = [self._prompt(wanted[key], pixels=True) for key in chunk]
            encoded = self._vision.encode(processed, self.head.weight.device)
            found.update(zip(chunk, encoded, strict=True))
            if frozen:
                for key, features in zip(chunk, encoded, strict=True):
                    self.features.put(key, features)
        return [found[key] for key in keys]

    def _prompt(self, example: Example, pixels: bool = False) -> dict[str, Tensor]:
        """Process messages to ids with picture placeholders and, with ``pixels``, to pixel values.

        Without ``pixels``, ids of recent prompts come from a bounded cache.
        """
        needs_pixels = pixels or not self.config.freeze_vision
        known = self._prompts.get(example.context)
        if known is not None and not needs_pixels:
            self._prompts.move_to_end(example.context)
            return known
        text = self.processor.apply_chat_template(chat_template_messages(example.messages), add_generation_prompt=True)
        images = [_decode(picture) for picture in example.pictures]
        processed = dict(self.processor(text=[text], images=[images] if images else None, return_tensors="pt"))
        kept = {name: value for name, value in processed.items() if name not in VisionFeatures.INPUTS}
        self._prompts[example.context] = kept
        if len(self._prompts) > _PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return processed if needs_pixels else kept

    def _response(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor([*ids, self.tokenizer.eos_token_id])


def _decode(picture: Picture) -> Any:
    try:
        return picture.decode()
    except MorError as error:
        raise Invalid(f"picture {picture.sha256[:12]}: {error}") from error


def _load_processor(name: str, root: Path) -> Any:
    local = root / name
    try:
        return AutoProcessor.from_pretrained(str(local) if local.exists() else name)
    except (OSError, ValueError, KeyError) as error:
        raise Invalid(
            f"model {name!r} has no processor that can be loaded ({quote_failure(error)}); add "
            "processor_config.json and tokenizer.json"
        ) from error
