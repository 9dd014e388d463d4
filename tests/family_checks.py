"""Checks of a vision-language family: trainer, engines and reward models against plain passes of its own code.

The tests run them on a few families, ``bench/families.py`` on all of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mor_core import images as guarded
from mor_core.runs import RunSpec
from mor_core.sampling import forbidden_token_ids
from mor_core.vision import encode_prompt, load_processor
from mor_core.wire import ImagePart, Message, TextPart
from mor_reward.backbones import build
from mor_reward.backbones.backbone import Example, Picture
from mor_reward.backbones.vlm import Vlm, VlmConfig
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, PromptInput, SampleParams
from mor_rollout.engines.transformers_engine import TransformersEngine
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_trainer.model import loading
from mor_trainer.model.micro_batches import TrainingGroup, micro_batches
from mor_trainer.model.policy import Policy
from peft import inject_adapter_in_model
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.utils import ModelOutput

RESPONSES = ((30, 41, 52, 63, 74), (99, 33), (120, 33, 45))
"""Token ids that every tiny tokenizer has as plain text."""
_SIZES = ((96, 64), (48, 80), (64, 64))
"""Of pictures, so that swapped axes and mixed-up pictures show."""


@dataclass(frozen=True)
class Sample:
    """A prompt and its encoded pictures by hash."""

    messages: tuple[Message, ...]
    images: dict[str, bytes]

    @property
    def decoded(self) -> dict[str, Image.Image]:
        return {digest: guarded.decode(content) for digest, content in self.images.items()}


def sample(pictures: int, seed: int = 0) -> Sample:
    """Return a prompt with pictures of different sizes and contents."""
    images: dict[str, bytes] = {}
    for number in range(pictures):
        index = seed + number
        picture = Image.linear_gradient("L").rotate(90 * index).resize(_SIZES[index % 3])
        file = io.BytesIO()
        Image.merge("RGB", [picture.point([(v * (k + index + 1)) % 256 for v in range(256)]) for k in range(3)]).save(
            file, "png"
        )
        images[guarded.sha256(file.getvalue())] = file.getvalue()
    text = " ".join(["What is in the picture?"] * (1 + seed % 3))
    parts = (*map(ImagePart.of, images), TextPart(text=text))
    return Sample((Message(role="user", content=parts),), images)


def blank_page(width: int, height: int) -> Sample:
    """Return a prompt with a white picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "png")
    digest = guarded.sha256(file.getvalue())
    parts = (ImagePart.of(digest), TextPart(text="What is written here?"))
    return Sample((Message(role="user", content=parts),), {digest: file.getvalue()})


class PlainModel:
    """The family's own code, one whole sequence at a time, with pixel values and without caches."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float64) -> None:
        self.processor = load_processor(str(checkpoint))
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval()
        self._dtype = dtype

    def inputs(self, prompt: Sample, response: Sequence[int]) -> dict[str, Any]:
        """Return the forward arguments for a whole sequence, continued as the model's own generation would."""
        inputs = encode_prompt(self.processor, prompt.messages, prompt.decoded)
        inputs.pop("labels", None)
        tokens = inputs["input_ids"].shape
        inputs = {k: v.to(self._dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        for token in response:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            inputs = self.model._update_model_kwargs_for_generation(ModelOutput(), inputs, is_encoder_decoder=False)
        for name, value in inputs.items():  # types of tokens that generation drops after the prompt: text
            if value.shape == tokens:
                inputs[name] = torch.cat([value, value.new_zeros(1, len(response))], 1)
        return inputs

    def logprobs(self, prompt: Sample, response: Sequence[int]) -> Tensor:
        inputs = self.inputs(prompt, response)
        logits = self.model(**inputs, use_cache=False).logits[0, -len(response) - 1 : -1]
        forbidden = [i for i in forbidden_token_ids(self.processor, logits.shape[-1]) if i < logits.shape[-1]]
        logits = logits.index_fill(-1, torch.tensor(forbidden), float("-inf"))
        return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]

    @torch.no_grad()
    def last_hidden_state(self, prompt: Sample, response: Sequence[int]) -> Tensor:
        states = self.model.base_model(**self.inputs(prompt, response), use_cache=False).last_hidden_state
        return states[0, -1]


# -- trainer


def policy_of(checkpoint: Path, dtype: torch.dtype = torch.float64, **changes: Any) -> Policy:
    spec = RunSpec.model_validate(
        {
            "name": "tiny",
            "model": str(checkpoint),
            "prompts": "unused",
            "objective": "detail",
            "algorithm": {"kl": {"beta": 0.0}},
        }
        | changes
    )
    model, processor = loading.load(str(checkpoint), dtype)
    policy = Policy(model, processor, spec)
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            if "lora_B" in name:  # zeros at first
                parameter.normal_(std=0.1)
    return policy


def gradient_difference(policy: Policy, plain: PlainModel, prompts: Sequence[Sample]) -> tuple[float, float]:
    """Compare the policy with plain passes: largest differences of log-probabilities and of gradients (relative)."""
    groups = []
    for sampled in prompts:
        prepared = policy.prepare(sampled.messages, sampled.images)
        tokens = len(prepared.processed.token_ids)
        zeros = tuple((0.0,) * len(response) for response in RESPONSES)
        groups.append(TrainingGroup(0, tokens, RESPONSES, zeros, (0.0,) * len(RESPONSES), prepared))
    got: dict[tuple[int, int], Tensor] = {}
    for batch in micro_batches(groups, policy, 4096):
        values = policy.logprobs(batch)[0]
        parts = iter(values.split([len(response) for item in batch for response in item.responses]))
        total = values.new_zeros(())
        for item in batch:
            for member in item.members:
                value = next(parts)
                got[item.group, member] = value.detach()
                total = total + (value * _weights(value)).sum()
        total.backward()
    trained = {name: parameter for name, parameter in policy.trainable.items() if parameter.grad is not None}
    if policy.adapter is not None:
        inject_adapter_in_model(policy.adapter.peft_config["default"], plain.model)
        plain.model.load_state_dict({name: value.detach() for name, value in trained.items()}, strict=False)
    largest = 0.0
    wanted_total = torch.zeros(())
    for number, sampled in enumerate(prompts):
        for member, response in enumerate(RESPONSES):
            wanted = plain.logprobs(sampled, response)
            largest = max(largest, float((wanted.detach() - got[number, member]).abs().max()))
            wanted_total = wanted_total + (wanted * _weights(wanted)).sum()
    parameters = dict(plain.model.named_parameters())
    names = [name for name in trained if name in parameters]
    gradients = torch.autograd.grad(wanted_total, [parameters[name] for name in names], allow_unused=True)
    relative = 0.0
    for name, gradient in zip(names, gradients, strict=True):
        ours = trained[name].grad
        assert ours is not None
        expected = torch.zeros_like(ours) if gradient is None else gradient
        relative = max(relative, float((ours - expected).norm() / (expected.norm() + 1e-6)))
    return largest, relative


def _weights(values: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)


# -- engines


def engine_settings(checkpoint: Path, folder: Path, **changes: Any) -> RolloutSettings:
    return RolloutSettings(
        **{
            **{"model": str(checkpoint), "weights_dir": folder / "weights", "max_model_len": 512, "block_size": 32},
            **{"kv_cache_bytes": 64 << 20, "max_images": 2, "dtype": "float32", "threads": 1, "log_level": "error"},
            **{"backend": "transformers", "lora_max_rank": 0, "service_token": "t" * 32},
        }
        | changes
    )


def transformers_engine(settings: RolloutSettings) -> TransformersEngine:
    base = BaseCheckpoint(settings.model)
    return TransformersEngine(settings, base, PromptCodec(settings, base))


async def engine_difference(engine: Engine, plain: PlainModel, prompts: Iterable[Sample]) -> float:
    """Return the largest difference of a sampled token's log-probability from a plain pass, nats."""
    largest = 0.0
    params = SampleParams(max_tokens=6, temperature=1.0, top_p=1.0)
    for sampled in prompts:
        encoded = await engine.encode(PromptInput(sampled.messages, sampled.decoded))
        for response in await engine.sample(encoded, params, [1, 2]):
            with torch.no_grad():
                wanted = plain.logprobs(sampled, response.token_ids)
            largest = max(largest, float((wanted - torch.tensor(response.logprobs)).abs().max()))
    return largest


# -- reward models


def reward_model(checkpoint: Path, **changes: Any) -> Vlm:
    backbone = build(VlmConfig(model=str(checkpoint), precision="float32", **changes), Path(), pretrained=True)
    assert isinstance(backbone, Vlm)
    torch.manual_seed(1)
    torch.nn.init.normal_(backbone.head.weight)
    return backbone.eval()


def reward_difference(backbone: Vlm, plain: PlainModel, prompts: Sequence[Sample]) -> float:
    """Return the largest difference of a score from the head on a plain pass; all examples are scored together."""
    responses = ("a red circle", "There is a blue square on the left.")
    examples = [
        Example(prompt.messages, tuple(Picture(digest, content) for digest, content in prompt.images.items()), response)
        for prompt in prompts
        for response in responses
    ]
    with torch.no_grad():
        got = backbone(examples).double()
        wanted = [
            backbone.head(
                plain.last_hidden_state(prompt, backbone._response(response).tolist()).to(backbone.head.weight.dtype)
            )
            for prompt in prompts
            for response in responses
        ]
    return float((got - torch.cat(wanted)).abs().max())
