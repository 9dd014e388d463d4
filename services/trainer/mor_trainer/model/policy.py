"""Log-probabilities of sampled responses under the trained model and under the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog
import torch
from jaxtyping import Float, Int
from mor_core.byte_cache import ByteBoundCache
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.model_family import trial_prompt
from mor_core.picture_features import PictureFeatures, encode_pictures, join_features, takes_features
from mor_core.processed_prompt import ProcessedPrompt, joined_picture_inputs
from mor_core.runs import RunSpec
from mor_core.sampling import forbidden_token_ids
from mor_core.wire import Message
from torch import Tensor, nn

from mor_trainer.model import loading, packed_groups, sharding, shared_prompt
from mor_trainer.model.logprobs import chosen_logprobs
from mor_trainer.model.packed_sequences import PackedSequence, PreparedPrompt, packed_inputs, padded_inputs
from mor_trainer.model.positions import rotary_positions
from mor_trainer.model.prompt_processor import PromptProcessor
from mor_trainer.model.sharding import ShardedModel
from mor_trainer.ranks import Ranks

log = structlog.get_logger(__name__)

_ROUNDING = 1e-3
"""Largest relative difference of hidden states, float32, that rounding explains; a wrong mask or position makes 0.1."""

_TRIAL_WORDS = (5, 12)
"""Lengths of the trial's prompts, in words: near each other, so that they are padded to one length."""


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
        encode_timeout_s: float = 60.0,
    ) -> None:
        """Prepare ``model`` for training, and check which shortcuts it allows.

        ``ranks``: those that hold the model, each a shard; all of them make each call that computes log-probabilities.
        ``autocast``: type of matrix products; parameters keep their own. ``cache_bytes``: bound of the prompts and
        image features kept, half for each. ``encode_timeout_s``: longest processing of a prompt, seconds.
        """
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
        replicated = sharding.replicated_parameters(model)
        self._policy = sharding.shard(model, ranks, replicated)
        self._reference = None if reference is None else sharding.shard(reference, ranks, replicated)
        self.trainable: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        """By ``named_parameters`` names of the model."""
        self._temperature = spec.sampling.temperature
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.forbidden = torch.tensor(
            forbidden_token_ids(processor, self.vocabulary), dtype=torch.long, device=self.device
        )
        self._prompt_processor = PromptProcessor(processor, encode_timeout_s)
        self._prepared = ByteBoundCache[PreparedPrompt](cache_bytes // 2, lambda prompt: prompt.bytes)
        self._features = ByteBoundCache[PictureFeatures](cache_bytes // 2, lambda features: features.nbytes)
        self._plain_head = self._head_is_plain()
        frozen = spec.freeze_vision or self.adapter is not None
        self._reuses_features = frozen and takes_features(model.base_model if self._plain_head else model)
        self.shares_prompts = False
        """True if a sequence may have several responses to its prompt, and sequences are packed without padding."""
        self._try_family(sharing=spec.shared_prompt == "auto")
        if spec.gradient_checkpointing:
            loading.recompute_activations(self.model)

    def process_prompt(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> ProcessedPrompt:
        """Process a prompt, without its image features; it is cached up to the byte bound."""
        return self._processed(messages, images).processed

    def prepare(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> PreparedPrompt:
        """Process a prompt and compute its image features; both are cached up to the byte bound."""
        known = self._processed(messages, images)
        if known.features is not None or not self._reuses_features:
            return known
        features = self._picture_features(known.processed)
        if features is None:
            return known
        prepared = PreparedPrompt(known.processed.without_pixels(), features, known.positions)
        self._prepared.put(_cache_key(messages), prepared)
        return prepared

    def _processed(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> PreparedPrompt:
        if (known := self._prepared.get(_cache_key(messages))) is not None:
            return known
        processed = self._prompt_processor.process(messages, images)
        prepared = PreparedPrompt(processed, None, rotary_positions(self.model, processed))
        self._prepared.put(_cache_key(messages), prepared)
        return prepared

    @torch.no_grad()
    def _picture_features(self, prompt: ProcessedPrompt) -> PictureFeatures | None:
        if prompt.pixels is None:
            return None
        if (known := self._features.get(prompt.pictures_key)) is not None:
            return known
        inputs = {name: value.to(self.device) for name, value in prompt.picture_inputs.items()}
        with self._autocast():
            features = encode_pictures(self.model.base_model, inputs)
        self._features.put(prompt.pictures_key, features)
        return features

    def logprobs(self, sequences: Sequence[PackedSequence]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return log-probability (with gradient) and entropy of each response token, sequence after sequence, nats."""
        return self._score(self._policy, sequences)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequence[PackedSequence]) -> Float[Tensor, " n"]:
        """Return the log-probabilities of the same tokens under the reference policy, nats."""
        if self._reference is not None:
            return self._score(self._reference, sequences)[0]
        assert self.adapter is not None, "a run with beta = 0 has no reference"
        with self.adapter.disable_adapter():
            return self._score(self._policy, sequences)[0]

    def stacks_with_others(self, sequence: PackedSequence) -> bool:
        """Return whether a sequence may share a micro-batch with other prompts; raw pixels may differ in shape."""
        return sequence.prompt.features is not None or not sequence.prompt.processed.picture_inputs

    def padded_tokens(self, sequences: Sequence[PackedSequence]) -> int:
        """Return the tokens that a micro-batch takes through the model, padding included."""
        lengths = list(map(len, sequences))
        return sum(lengths) if self.shares_prompts else len(lengths) * max(lengths)

    def _score(
        self, sharded: ShardedModel, sequences: Sequence[PackedSequence]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        chosen = torch.tensor(
            [token for sequence in sequences for response in sequence.responses for token in response],
            device=self.device,
        )

        def score(model: Any) -> tuple[Tensor, Tensor]:
            inputs, predicting = (
                packed_inputs(sequences, self.device) if self.shares_prompts else self._padded_inputs(sequences)
            )
            return chosen_logprobs(
                self._hidden(model, sequences, inputs, predicting),
                model.get_output_embeddings() if self._plain_head else nn.Identity(),
                chosen,
                temperature=self._temperature,
                forbidden=self.forbidden,
                vocabulary=self.vocabulary,
            )

        with self._autocast():
            return sharded(score)

    def _padded_inputs(self, sequences: Sequence[PackedSequence]) -> tuple[dict[str, Any], Int[Tensor, " n"]]:
        return padded_inputs(sequences, self._padding_id(), self.device)

    def _hidden(
        self, model: Any, sequences: Sequence[PackedSequence], inputs: dict[str, Any], predicting: Int[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        """Compute the hidden states (or logits, if the head is not plain) that predict the response tokens."""
        inputs = inputs | self._vision(sequences)
        with packed_groups.packed(inputs.pop("packed_groups", None)):
            if self._plain_head:
                states = model.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
            else:
                states = model(**inputs, use_cache=False, return_dict=True).logits
        selected: Tensor = states.flatten(0, 1)[predicting]
        return selected

    def _vision(self, sequences: Sequence[PackedSequence]) -> dict[str, Any]:
        """Join cached features, or all that the processor made of the images, sequence after sequence."""
        prompts = [sequence.prompt for sequence in sequences]
        inputs: dict[str, Any] = dict(joined_picture_inputs([prompt.processed for prompt in prompts], self.device))
        features = join_features([prompt.features for prompt in prompts if prompt.features is not None])
        return inputs if features is None else inputs | {"mm_encoder_outputs": features}

    def _plain_tokens(self, count: int) -> list[int]:
        """Return the first tokens that a policy may sample and that are not padding."""
        left_out = {self._padding_id(), *self.forbidden.tolist()}
        return [token for token in range(self.vocabulary) if token not in left_out][:count]

    def _padding_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            yield

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Return whether logits are the output embedding of the last hidden state, without soft-capping or scaling."""
        if self.model.base_model is self.model:
            return False
        # Words, as the embedding of the padding token may be zero, and then so are all logits.
        ids: Int[Tensor, "1 4"] = torch.tensor([self._plain_tokens(4)], device=self.device)

        def compare(model: Any) -> bool:
            states = model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
            wanted = model(input_ids=ids, use_cache=False, return_dict=True).logits
            return torch.allclose(model.get_output_embeddings()(states), wanted, atol=1e-5, rtol=1e-4)

        with self._autocast():
            return self._policy(compare)

    @torch.no_grad()
    def _try_family(self, sharing: bool) -> None:
        """Check on two prompts with a picture which shortcuts the model allows, and that it computes at all.

        Each shortcut must give the hidden states of each response alone, after whole prompts with pixel values. The
        prompts have different lengths, so that padding between them shows, and are longer than any window that the
        model attends in.

        Raises:
            Invalid: the model or its processor fails on such a prompt, so nothing can be trained.
        """
        try:
            window = shared_prompt.longest_window(loading.decoder_of(self.model)) if sharing else 0
            prompts = [self._trial_prompt(window + words) for words in _TRIAL_WORDS]
            ids = self._plain_tokens(9)
            responses = (tuple(ids[:6]), tuple(ids[6:]))
            alone = [PackedSequence(prompt, (response,)) for prompt in prompts for response in responses]
            wanted = torch.cat([self._trial(sequence) for sequence in alone])
        except Exception as error:  # raised on every rank at the same place, whatever the model's code raises
            raise Invalid(
                f"{type(self.model).__name__} cannot be trained: a prompt with a picture does not go through it"
                f" ({describe_failure(error)}); docs/model-families.md lists the families that are known to work"
            ) from error
        if not bool(torch.isfinite(wanted).all()):
            raise Invalid(
                f"{type(self.model).__name__} cannot be trained: its hidden states are not finite; check its weights"
                " for NaN, or use a copy that is not damaged"
            )

        def allows(shortcut: str, run: Callable[[], Tensor]) -> bool:
            try:
                difference = float((run() - wanted).norm() / wanted.norm())
                reason = f"its hidden states differ by {difference:.1e}"
            except Exception as error:  # raised on every rank at the same place, whatever the model's code raises
                sharding.reset(self._policy)
                difference, reason = float("inf"), describe_failure(error)
            if difference > _ROUNDING:
                log.warning(shortcut, model=type(self.model).__name__, reason=reason[:500])
            return difference <= _ROUNDING

        if self._reuses_features:
            self._reuses_features = allows(
                "image features are not reused: each image is encoded again in every pass",
                lambda: torch.cat([self._trial(self._with_features(sequence)) for sequence in alone]),
            )
        if not sharing:
            return
        decoder: Any = loading.decoder_of(self.model)
        before = decoder.config._attn_implementation

        def hidden(groups: Sequence[PackedSequence]) -> Tensor:
            return self._policy(lambda model: self._hidden(model, groups, *packed_inputs(groups, self.device)))

        def packed() -> Tensor:
            shared_prompt.install(decoder)
            groups = [PackedSequence(prompt, responses) for prompt in prompts]
            if self._reuses_features:
                groups = [self._with_features(group) for group in groups]
            if all(map(self.stacks_with_others, groups)):
                return hidden(groups)
            return torch.cat([hidden([group]) for group in groups])

        self.shares_prompts = allows(
            "prompts are not shared: each response goes through the model with its prompt", packed
        )
        if not self.shares_prompts:
            decoder.set_attn_implementation(before)
        elif self._reference is not None:
            shared_prompt.install(loading.decoder_of(self._reference.model))

    def _trial_prompt(self, words: int) -> PreparedPrompt:
        processed = self._prompt_processor.process(*trial_prompt(words))
        return PreparedPrompt(processed, None, rotary_positions(self.model, processed))

    def _with_features(self, sequence: PackedSequence) -> PackedSequence:
        processed = sequence.prompt.processed
        inputs = {name: value.to(self.device) for name, value in processed.picture_inputs.items()}
        features = encode_pictures(self.model.base_model, inputs)
        prompt = PreparedPrompt(processed.without_pixels(), features, sequence.prompt.positions)
        return PackedSequence(prompt, sequence.responses)

    def _trial(self, sequence: PackedSequence) -> Float[Tensor, "n width"]:
        inputs = self._padded_inputs([sequence])
        return self._policy(lambda model: self._hidden(model, [sequence], *inputs))


def _cache_key(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.model_dump_json() for message in messages)
