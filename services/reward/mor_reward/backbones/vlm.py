"""Any Hugging Face image-text-to-text model with a scalar head on the last token's hidden state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from mor_core.errors import Invalid, MorError
from mor_core.picture_features import PictureFeatures, join_features, takes_features
from mor_core.processed_prompt import ProcessedPrompt, continued_token_inputs, joined_picture_inputs
from mor_core.special_tokens import escape_control
from mor_core.vision import encode_prompt, load_processor
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, DynamicCache

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
from mor_reward.backbones.vision_features import ENCODED_TOGETHER, VisionFeatures

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
        headless = not config.likelihood
        full = load_model(AutoModelForImageTextToText, config.model, root, pretrained, "model", headless=headless)
        self.model: Any = full.base_model
        if full is self.model or not takes_features(self.model):
            raise Invalid(
                f"model {config.model!r}: {type(full).__name__} does not accept precomputed picture features; "
                "use another image-text-to-text architecture (LLaVA, Idefics3, SmolVLM, Qwen-VL, Gemma 3, ...)"
            )
        local = root / config.model
        self.processor = load_processor(str(local) if local.exists() else config.model)
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
        self.shares_prefix = _caches_prefix(self.model)
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
        self._prompts: OrderedDict[Hashable, ProcessedPrompt] = OrderedDict()

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
        length = len(prompt.token_ids) + len(self._response(example.response))
        if length > self.config.max_length:
            return f"prompt and response have {length} tokens; this model reads at most {self.config.max_length}"
        return None

    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        contexts = list({example.context: example for example in batch}.values())
        number = {example.context: index for index, example in enumerate(contexts)}
        rows = [number[example.context] for example in batch]
        responses = [self._response(example.response) for example in batch]
        with self._autocast():
            prompts = [self._prompt(example) for example in contexts]
            shares = self.shares_prefix and not any(prompt.token_inputs for prompt in prompts)
            run = self._shared_prefix if shares else self._whole_sequences
            hidden = run(contexts, prompts, rows, responses).float()
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
        self,
        contexts: Sequence[Example],
        prompts: Sequence[ProcessedPrompt],
        rows: Sequence[int],
        responses: Sequence[Tensor],
    ) -> Float[Tensor, "rows tokens hidden"]:
        """Compute the hidden states before the response and at each of its tokens, each context once."""
        prefixes = [torch.tensor(prompt.token_ids) for prompt in prompts]
        device = self.head.weight.device
        ids = pad_sequence(prefixes, batch_first=True, padding_side="left").to(device)
        mask = pad_sequence([torch.ones_like(prefix) for prefix in prefixes], batch_first=True, padding_side="left")
        mask = mask.to(device)
        cache = DynamicCache(config=self.model.config.get_text_config())
        before = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            mm_encoder_outputs=_joined(self._image_features(contexts)),
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
        self,
        contexts: Sequence[Example],
        prompts: Sequence[ProcessedPrompt],
        rows: Sequence[int],
        responses: Sequence[Tensor],
    ) -> Float[Tensor, "rows tokens hidden"]:
        """Compute the same from whole sequences, for models that tell the tokens of a prompt apart."""
        device = self.head.weight.device
        repeated = [prompts[row] for row in rows]
        whole = [
            torch.cat([torch.tensor(prompt.token_ids), response])
            for prompt, response in zip(repeated, responses, strict=True)
        ]
        starts = torch.tensor([len(prompt.token_ids) for prompt in repeated], device=device)
        lengths = torch.tensor([len(response) for response in responses], device=device)
        width = max(map(len, whole))
        features = self._image_features(contexts)
        hidden = self.model(
            input_ids=pad_sequence(whole, batch_first=True).to(device),
            attention_mask=(torch.arange(width, device=device) < (starts + lengths)[:, None]).long(),
            **continued_token_inputs(repeated, width, device),
            **joined_picture_inputs([prompt.without_pixels() for prompt in repeated], device),
            mm_encoder_outputs=_joined([features[row] for row in rows]),
            use_cache=False,
        ).last_hidden_state
        steps = torch.arange(int(lengths.max()) + 1, device=device)
        positions = (starts[:, None] - 1 + steps).clamp(max=width - 1)
        return torch.take_along_dim(hidden, positions[..., None], dim=1)

    def linear_part(self) -> list[Tensor]:
        return [self.head.weight, *([self.likelihood] if self.config.likelihood else [])]

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

    def _image_features(self, contexts: Sequence[Example]) -> list[PictureFeatures | None]:
        """Return the features of each context, ``None`` without a picture. Uncached contexts are encoded together."""
        frozen = self.config.freeze_vision
        keys = [("pictures", *(picture.sha256 for picture in example.pictures)) for example in contexts]
        found: dict[Hashable, PictureFeatures | None] = {
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

    def _prompt(self, example: Example, pixels: bool = False) -> ProcessedPrompt:
        """Process messages to ids with picture placeholders and, with ``pixels``, to pixel values.

        Without ``pixels``, recent prompts come from a bounded cache.
        """
        known = self._prompts.get(example.context)
        if known is not None and not pixels:
            self._prompts.move_to_end(example.context)
            return known
        pictures = {picture.sha256: _decode(picture) for picture in example.pictures}
        processed = ProcessedPrompt.of(encode_prompt(self.processor, example.messages, pictures))
        kept = self._prompts[example.context] = processed.without_pixels()
        if len(self._prompts) > _PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return processed if pixels else kept

    def _response(self, text: str) -> Tensor:
        text = escape_control(self.processor, text)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor([*ids, self.tokenizer.eos_token_id])


def _decode(picture: Picture) -> Any:
    try:
        return picture.decode()
    except MorError as error:
        raise Invalid(f"picture {picture.sha256[:12]}: {error}") from error


def _joined(features: Sequence[PictureFeatures | None]) -> dict[str, Any] | None:
    return join_features([item for item in features if item is not None])


def _caches_prefix(model: Any) -> bool:
    """Return whether responses can go on from cached keys and values of their prompt, padded on the left.

    They cannot where the model derives positions from the whole sequence (multi-axis rotary embeddings), or where a
    layer carries a state instead of attending.
    """
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    attends = all(kind.endswith("attention") and kind != "linear_attention" for kind in layers)
    return attends and not hasattr(model, "get_rope_index")
