"""The policy: log-probabilities of sampled responses under the trained model and under the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
import torch
from jaxtyping import Float, Int
from mor_core.runs import RunSpec
from mor_core.sampling import forbidden_token_ids
from mor_core.wire import Message
from torch import Tensor, nn

from mor_trainer import loading
from mor_trainer.encoding import EncodedPrompt, PromptEncoder
from mor_trainer.features import ByteBoundCache, ImageFeatures, features_of, joined
from mor_trainer.logprobs import chosen_logprobs
from mor_trainer.rows import PreparedPrompt, Row, lay_out

log = structlog.get_logger(__name__)


class Policy:
    """A vision-language model in training, and its reference.

    Dropout is off: the log-probabilities are those of the distribution that the engine samples from.
    """

    def __init__(
        self, model: Any, processor: Any, spec: RunSpec, *, device: str = "cpu", cache_bytes: int = 1 << 30
    ) -> None:
        self.device = torch.device(device)
        self.processor = processor
        tuned = loading.tune(model.to(self.device), spec.tuning, spec.freeze_vision)
        self.model = tuned.model
        self.adapter = tuned.adapter
        self.trainable: dict[str, nn.Parameter] = tuned.trainable
        self._reference: Any = None
        if spec.algorithm.kl.beta > 0 and self.adapter is None:
            self._reference = loading.frozen_copy(self.model)
        self.has_reference = spec.algorithm.kl.beta > 0
        if spec.gradient_checkpointing:
            loading.recompute_activations(self.model)
        self._temperature = spec.sampling.temperature
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._forbidden = torch.tensor(
            forbidden_token_ids(processor, self._vocabulary), dtype=torch.long, device=self.device
        )
        self._encoder = PromptEncoder(processor)
        self._frozen_vision = spec.freeze_vision or self.adapter is not None
        self._prepared: ByteBoundCache[PreparedPrompt] = ByteBoundCache(cache_bytes // 2)
        self._features: ByteBoundCache[ImageFeatures] = ByteBoundCache(cache_bytes // 2)
        self._plain_head = self._head_is_plain()
        self.shares_prompts = self._sharing_is_exact()
        """Whether a row may hold several responses to its prompt."""

    def prepare(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> PreparedPrompt:
        """Encode a prompt and compute its image features; both are kept for the next time, up to the byte bound."""
        name = "\n".join(message.model_dump_json() for message in messages)
        if (known := self._prepared.get(name)) is not None:
            return known
        encoded = self._encoder.encode(messages, images)
        features = self._image_features(encoded) if self._frozen_vision else None
        if features is not None:
            light = {key: value for key, value in encoded.vision.items() if not key.startswith("pixel_")}
            encoded = EncodedPrompt(encoded.token_ids, encoded.token_types, light, encoded.pixels)
        prepared = PreparedPrompt(encoded, features)
        self._prepared.put(name, prepared)
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
        if features is not None:
            self._features.put(encoded.pixels, features)
        return features

    def logprobs(self, rows: Sequence[Row]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Log-probability (with gradient) and entropy of every response token, row after row, nats."""
        return self._score(self.model, rows)

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequence[Row]) -> Float[Tensor, " n"]:
        """The same tokens under the reference policy."""
        if self._reference is not None:
            return self._score(self._reference, rows)[0]
        assert self.adapter is not None, "a run with beta = 0 has no reference"
        with self.adapter.disable_adapter():
            return self._score(self.model, rows)[0]

    def mixes_prompts(self, row: Row) -> bool:
        """Whether rows of different prompts may stand in one micro-batch; raw pixel values may differ in shape."""
        return row.prompt.features is not None or not row.prompt.encoded.vision

    def _score(self, model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(
            [token for row in rows for response in row.responses for token in response], device=self.device
        )
        with self._autocast():
            hidden = self._hidden(model, rows)
            return chosen_logprobs(
                hidden,
                model.get_output_embeddings() if self._plain_head else nn.Identity(),
                chosen,
                temperature=self._temperature,
                forbidden=self._forbidden,
                vocabulary=self._vocabulary,
            )

    def _hidden(self, model: Any, rows: Sequence[Row]) -> Float[Tensor, "n width"]:
        """Hidden states (or logits, if the head is not plain) at the positions that predict response tokens."""
        layout = lay_out(rows, self._padding_id())
        inputs = {name: value.to(self.device) for name, value in layout.inputs.items()} | self._vision(rows)
        if self._plain_head:
            states = model.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        else:
            states = model(**inputs, use_cache=False, return_dict=True).logits
        selected: Tensor = states.flatten(0, 1)[layout.predicting.to(self.device)]
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
        """bfloat16 on accelerators that have it; float32 on CPU, where log-probabilities must match the engine's."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            yield

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether logits are just the output embedding of the last hidden state (no soft-capping, no scaling)."""
        ids: Int[Tensor, "1 4"] = torch.full((1, 4), self._padding_id(), device=self.device)
        with self._autocast():
            states = self.model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
            wanted = self.model(input_ids=ids, use_cache=False, return_dict=True).logits
            return bool(torch.allclose(self.model.get_output_embeddings()(states), wanted, atol=1e-5, rtol=1e-4))

    @torch.no_grad()
    def _sharing_is_exact(self) -> bool:
        """Whether the model computes the same for responses in one row as for each in a row of its own.

        Not where positions are more than a count (multimodal rotary embeddings), or a mask of ours is not respected.
        """
        prompt = PreparedPrompt(EncodedPrompt((1, 2, 3, 4, 5), None, {}, None), None)
        responses = ((6, 7, 8), (9, 10), (7, 6, 5, 4))
        if "mrope_section" in str(self.model.config.get_text_config().to_dict()):
            return False
        with self._autocast():
            shared = self._hidden(self.model, [Row(prompt, responses)])
            plain = self._hidden(self.model, [Row(prompt, (response,)) for response in responses])
        exact = torch.allclose(shared, plain, atol=1e-4, rtol=1e-3)
        if not exact:
            log.warning("prompts cannot be shared with this model, each response gets a row", model=type(self.model))
        return exact
