"""The policy: log-probabilities of sampled responses under the trained model and under the reference."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
import torch
from jaxtyping import Float, Int
from mor_core.runs import RunSpec
from mor_core.sampling import forbidden_token_ids
from mor_core.wire import ImagePart, Message, TextPart
from PIL import Image
from torch import Tensor, nn

from mor_trainer.model import loading, sharding, shared_prompt
from mor_trainer.model.encoding import EncodedPrompt, PromptEncoder
from mor_trainer.model.features import ByteBoundCache, ImageFeatures, features_of, joined, takes_features
from mor_trainer.model.logprobs import chosen_logprobs
from mor_trainer.model.positions import positions_of
from mor_trainer.model.rows import Layout, PreparedPrompt, Row, packed, padded
from mor_trainer.model.sharding import Whole
from mor_trainer.ranks import Ranks

log = structlog.get_logger(__name__)

_SAME = 1e-3
"""Largest relative difference of hidden states, float32, that rounding explains; a wrong mask or position makes 0.1."""


class Policy:
    """A vision-language model in training, and its reference.

    Dropout is off: the log-probabilities are those of the distribution that the engine samples from.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        spec: RunSpec,
        *,
        ranks: Ranks | None = None,
        autocast: torch.dtype | None = None,
        cache_bytes: int = 1 << 30,
    ) -> None:
        """``ranks``: those that hold the model together, each a shard; they do everything that takes log-probabilities
        together. ``autocast``: type that matrix products are computed in; parameters keep their own."""
        ranks = ranks or Ranks(torch.device("cpu"))
        self.device = ranks.device
        if self.device.type == "cuda":
            loading.prepare_cuda()
        self.processor = processor
        self._autocast_dtype = autocast
        self.model = model
        self.adapter = loading.tune(model, spec.tuning, spec.freeze_vision)
        self.has_reference = spec.algorithm.kl.beta > 0
        reference = loading.frozen_copy(model) if self.has_reference and self.adapter is None else None
        whole = sharding.beside(model)
        self._policy = sharding.place(model, ranks, whole)
        self._reference = None if reference is None else sharding.place(reference, ranks, whole)
        self.trainable: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        """By ``named_parameters`` names of the model."""
        self._temperature = spec.sampling.temperature
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._forbidden = torch.tensor(
            forbidden_token_ids(processor, self._vocabulary), dtype=torch.long, device=self.device
        )
        self._encoder = PromptEncoder(processor)
        self._prepared: ByteBoundCache[PreparedPrompt] = ByteBoundCache(cache_bytes // 2)
        self._features: ByteBoundCache[ImageFeatures] = ByteBoundCache(cache_bytes // 2)
        self._plain_head = self._head_is_plain()
        frozen = spec.freeze_vision or self.adapter is not None
        self._reuses_features = frozen and takes_features(model.base_model if self._plain_head else model)
        self.shares_prompts = spec.shared_prompt == "auto" and self._share_prompts()
        """Whether a row may hold several responses to its prompt, and rows are packed without padding."""
        if spec.gradient_checkpointing:
            loading.recompute_activations(self.model)

    def encode(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> EncodedPrompt:
        """A prompt's tokens, without its image features; kept for the next time, up to the byte bound."""
        return self._encoded(messages, images).encoded

    def prepare(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> PreparedPrompt:
        """Encode a prompt and compute its image features; both are kept for the next time, up to the byte bound."""
        known = self._encoded(messages, images)
        if known.features is not None or not self._reuses_features:
            return known
        features = self._image_features(known.encoded)
        if features is None:
            return known
        encoded = known.encoded
        light = {key: value for key, value in encoded.vision.items() if not key.startswith("pixel_")}
        encoded = EncodedPrompt(encoded.token_ids, encoded.token_types, light, encoded.pixels)
        prepared = PreparedPrompt(encoded, features, known.positions)
        self._prepared.put(_name(messages), prepared)
        return prepared

    def _encoded(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> PreparedPrompt:
        if (known := self._prepared.get(_name(messages))) is not None:
            return known
        encoded = self._encoder.encode(messages, images)
        prepared = PreparedPrompt(encoded, None, positions_of(self.model, encoded))
        self._prepared.put(_name(messages), prepared)
        return prepared

    @torch.no_grad()
    def _image_features(self, encoded: EncodedPrompt) -> ImageFeatures | None:
        if encoded.pixels is None:
            return None
        if (known := self._features.get(encoded.pixels)) is not None:
            return known
        with self._autocast():
            output = self.model.get_image_features(
                **{name: value.to(self.device) for name, value in encoded.vision.items()}, return_dict=True
            )
        features = features_of(output)
        if features is None:
            self._reuses_features = False  # of this model
        else:
            self._features.put(encoded.pixels, features)
        return features

    def logprobs(self, rows: Sequence[Row]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Log-probability (with gradient) and entropy of every response token, row after row, nats."""
        return self._score(self._policy, rows)

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequence[Row]) -> Float[Tensor, " n"]:
        """The same tokens under the reference policy."""
        if self._reference is not None:
            return self._score(self._reference, rows)[0]
        assert self.adapter is not None, "a run with beta = 0 has no reference"
        with self.adapter.disable_adapter():
            return self._score(self._policy, rows)[0]

    def mixes_prompts(self, row: Row) -> bool:
        """Whether rows of different prompts may stand in one micro-batch; raw pixel values may differ in shape."""
        return row.prompt.features is not None or not row.prompt.encoded.vision

    def places(self, rows: Sequence[Row]) -> int:
        """Tokens that a micro-batch of these rows takes through the model, padding included."""
        return sum(map(len, rows)) if self.shares_prompts else len(rows) * max(map(len, rows))

    def _score(self, whole: Whole, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(
            [token for row in rows for response in row.responses for token in response], device=self.device
        )

        def score(model: Any) -> tuple[Tensor, Tensor]:
            return chosen_logprobs(
                self._hidden(model, rows, self._lay_out(rows)),
                model.get_output_embeddings() if self._plain_head else nn.Identity(),
                chosen,
                temperature=self._temperature,
                forbidden=self._forbidden,
                vocabulary=self._vocabulary,
            )

        with self._autocast():
            return whole(score)

    def _lay_out(self, rows: Sequence[Row]) -> Layout:
        return packed(rows, self.device) if self.shares_prompts else padded(rows, self._padding_id(), self.device)

    def _hidden(self, model: Any, rows: Sequence[Row], layout: Layout) -> Float[Tensor, "n width"]:
        """Hidden states (or logits, if the head is not plain) at the positions that predict response tokens."""
        inputs = layout.inputs | self._vision(rows)
        if self._plain_head:
            states = model.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        else:
            states = model(**inputs, use_cache=False, return_dict=True).logits
        selected: Tensor = states.flatten(0, 1)[layout.predicting]
        return selected

    def _vision(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Features where they are known, and what else the processor made of the images, row after row."""
        inputs: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row.prompt.encoded.vision):
            parts = [row.prompt.encoded.vision[name] for row in rows if name in row.prompt.encoded.vision]
            inputs[name] = torch.cat(parts).to(self.device)
        features = [row.prompt.features for row in rows if row.prompt.features is not None]
        if features:
            inputs["mm_encoder_outputs"] = joined(features)
        return inputs

    def _padding_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            yield

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether logits are just the output embedding of the last hidden state (no soft-capping, no scaling)."""
        ids: Int[Tensor, "1 4"] = torch.full((1, 4), self._padding_id(), device=self.device)

        def compare(model: Any) -> bool:
            states = model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
            wanted = model(input_ids=ids, use_cache=False, return_dict=True).logits
            return torch.allclose(model.get_output_embeddings()(states), wanted, atol=1e-5, rtol=1e-4)

        with self._autocast():
            return self._policy(compare)

    @torch.no_grad()
    def _share_prompts(self) -> bool:
        """Switch the language model to packed groups if it then computes what it computes for each response alone.

        Tried on a prompt with an image, so that masks and positions that depend on images count too.
        """
        decoder: Any = loading.decoder_of(self.model)
        before = decoder.config._attn_implementation
        try:
            prompt = self.prepare(*_with_image())
            forbidden = set(self._forbidden.tolist())
            ids = [token for token in range(self._vocabulary) if token not in forbidden][:9]
            responses = (tuple(ids[:6]), tuple(ids[6:]))
            alone = [Row(prompt, (response,)) for response in responses]
            layouts = [padded([row], self._padding_id(), self.device) for row in alone]
            wanted = self._policy(
                lambda model: torch.cat(
                    [self._hidden(model, [row], layout) for row, layout in zip(alone, layouts, strict=True)]
                )
            )
            shared_prompt.use(decoder)
            rows = [Row(prompt, responses), alone[0]]
            found = self._policy(lambda model: self._hidden(model, rows, packed(rows, self.device)))
        except Exception as error:  # on every rank at the same place
            sharding.recover(self._policy)
            difference, reason = float("inf"), f"{type(error).__name__}: {error}"
        else:
            wanted = torch.cat([wanted, wanted[: len(responses[0])]])
            difference = float((found - wanted).norm() / wanted.norm())
            reason = f"its hidden states differ by {difference:.1e}"
        if difference <= _SAME:
            if self._reference is not None:
                shared_prompt.use(loading.decoder_of(self._reference.model))
            return True
        decoder.set_attn_implementation(before)
        log.warning(
            "prompts are not shared: each response goes through the model with its prompt",
            model=type(self.model).__name__,
            reason=reason[:500],
        )
        return False


def _name(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.model_dump_json() for message in messages)


def _with_image() -> tuple[tuple[Message, ...], dict[str, bytes]]:
    """Any prompt with an image, wider than high."""
    content = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(content, "png")
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    parts = (ImagePart.of(digest), TextPart(text="What is in this picture?"))
    return (Message(role="user", content=parts),), {digest: content.getvalue()}
