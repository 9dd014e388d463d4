"""Trial of a model's family without a run: does the trainer compute what the family's own code computes?

The trial takes a copy of the model with two layers a part and random weights: a wrong mask, position or picture shows
as in the whole model. Asked to, it takes the whole model.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from mor_core import images
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.runs import RunSpec
from mor_core.vision import encode_prompt, load_processor
from mor_core.wire import ImagePart, Message, TextPart
from PIL import Image
from torch import Tensor

from mor_trainer.model import loading
from mor_trainer.model.packed_sequences import PackedSequence
from mor_trainer.model.policy import Policy

_LAYERS = 2
"""Layers of each part of the copy: enough for one to attend to what another has computed."""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "depth", "encoder_layers", "decoder_layers")
"""Names of the number of layers in configurations."""
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
"""Names of lists with one entry for each layer."""
_INDEXES = ("deepstack_visual_indexes", "fullatt_block_indexes", "cross_attention_layers", "vision_feature_layers")
"""Names of lists of layers."""
_ROUNDING = 0.02
"""Largest difference of log-probabilities that rounding explains, relative to their spread over a response's tokens; a
wrong mask, position or picture makes one of the order of 1."""
_TUNINGS: dict[str, dict[str, Any]] = {
    "frozen vision": {},
    "trained vision": {"freeze_vision": False},
    "adapters": {"tuning": {"kind": "lora", "rank": 4}},
}


def try_model(checkpoint: str, *, whole: bool = False) -> dict[str, str]:
    """Try to train a checkpoint's family; return what does not work, by the kind of training, with the reason.

    ``whole``: load the checkpoint's weights, not a small copy with random ones.

    Raises:
        Invalid: the checkpoint cannot be loaded.
    """
    processor = load_processor(checkpoint)
    model = loading.load(checkpoint)[0] if whole else _small_copy(checkpoint)
    problems = {}
    for name, changes in _TUNINGS.items():
        spec = RunSpec.model_validate(
            {"name": "trial", "model": checkpoint, "prompts": "-", "algorithm": {"kl": {"beta": 0.0}}} | changes
        )
        problem = _problem(lambda spec=spec: _compare(copy.deepcopy(model), processor, spec))  # type: ignore[misc]
        if problem is not None:
            problems[name] = problem
    return problems


def _problem(trial: Callable[[], str | None]) -> str | None:
    try:
        return trial()
    except Exception as error:  # whatever the family's code raises
        return describe_failure(error)


def _small_copy(checkpoint: str) -> Any:
    """Return a model of the checkpoint's family with few layers and random weights.

    Raises:
        Invalid: the family has no such model.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except Exception as error:  # a library that reads files of others may raise anything
        raise Invalid(
            f"model {checkpoint!r}: its configuration cannot be read: {quote_failure(error)}; give a checkpoint folder"
        ) from error
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        if part is not None:
            _make_shallow(part)
    torch.manual_seed(0)
    try:
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    except Exception as error:
        raise Invalid(
            f"model {checkpoint!r}: a small copy of {type(config).__name__} cannot be made "
            f"({describe_failure(error)}); try it with --whole, or use a family of docs/model-families.md"
        ) from error


def _make_shallow(config: Any) -> None:
    """Keep few layers of a part: one of each kind at least."""
    kinds = getattr(config, "layer_types", None)
    kept = sorted({kinds.index(kind) for kind in kinds}) if isinstance(kinds, list) and kinds else []
    kept = (kept + [layer for layer in range(len(kinds or ())) if layer not in kept])[: max(_LAYERS, len(kept))]
    depth = len(kept) or _LAYERS
    for name in _BY_LAYER:
        entries = getattr(config, name, None)
        if isinstance(entries, list) and len(entries) > depth:
            setattr(config, name, [entries[layer] for layer in sorted(kept or range(depth))])
    for name in _DEPTHS:
        if isinstance(layers := getattr(config, name, None), int) and layers > depth:
            setattr(config, name, depth)
    for name in _INDEXES:
        entries = getattr(config, name, None)
        if isinstance(entries, list) and entries:
            setattr(config, name, list(range(min(depth, len(entries)))))


def _compare(model: Any, processor: Any, spec: RunSpec) -> str | None:
    """Compare log-probabilities of the trainer with the model's own, and compute gradients."""
    plain = copy.deepcopy(model)
    policy = Policy(model, processor, spec)
    for pictures in (1, 2, 0):
        messages, contents = _prompt(pictures)
        decoded = {digest: images.decode(content) for digest, content in contents.items()}
        try:
            inputs = encode_prompt(processor, messages, decoded)
        except Invalid as error:
            if pictures == 1:
                return str(error)
            continue  # such prompts are refused by name before a run
        response = _response(policy, processor)
        got = policy.logprobs([PackedSequence(policy.prepare(messages, contents), (response,))])[0]
        wanted = _plain_logprobs(plain, inputs, response, policy.forbidden)
        difference = float((got.detach() - wanted).norm() / (wanted - wanted.mean()).norm())
        if not difference <= _ROUNDING:
            return (
                f"with {pictures} pictures the trainer's log-probabilities differ from the model's own by "
                f"{difference:.2g} of their spread"
            )
        torch.autograd.backward(got.sum())
    gradients = [parameter.grad for parameter in policy.trainable.values() if parameter.grad is not None]
    if not gradients or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return "its gradients are not finite"
    return None


def _prompt(pictures: int) -> tuple[tuple[Message, ...], dict[str, bytes]]:
    contents = {}
    for number in range(pictures):
        file = io.BytesIO()
        Image.linear_gradient("L").rotate(90 * number).resize((96 + 48 * number, 64)).convert("RGB").save(file, "PNG")
        contents[images.sha256(file.getvalue())] = file.getvalue()
    return (Message(role="user", content=(*map(ImagePart.of, contents), TextPart(text="What is shown?"))),), contents


def _response(policy: Policy, processor: Any) -> tuple[int, ...]:
    """Return a few tokens that the policy may sample."""
    forbidden = set(policy.forbidden.tolist()) | {processor.tokenizer.eos_token_id}
    return tuple(token for token in range(policy.vocabulary) if token not in forbidden)[3:9]


@torch.no_grad()
def _plain_logprobs(model: Any, inputs: dict[str, Any], response: tuple[int, ...], forbidden: Tensor) -> Tensor:
    """Return the log-probabilities of a response by the model's own code, in one pass over prompt and response."""
    from transformers.utils import ModelOutput

    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    shape = inputs["input_ids"].shape
    for token in response:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs = model._update_model_kwargs_for_generation(ModelOutput(), inputs, is_encoder_decoder=False)
    for name, value in inputs.items():  # types of tokens that generation drops after the prompt
        if value.shape == shape:
            inputs[name] = torch.cat([value, value.new_zeros(1, len(response))], 1)
    logits = model(**inputs, use_cache=False).logits[0, -len(response) - 1 : -1].float()
    logits = logits.index_fill(-1, forbidden[forbidden < logits.shape[-1]], float("-inf"))
    chosen: Tensor = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
    return chosen
