"""Recurrent layers over packed groups: the state after a prompt is forked, once for each of its responses.

For layers that keep their state in transformers' cache: gated delta nets (Qwen3.5) and short convolutions (LFM2). The
layer's own code runs over the prompts, and then over the responses, which begin with their prompt's state. Gradients
flow through the state.

Prompts are padded on the left with hidden states of zero, as in a batched generation: they leave an empty state empty.
What follows the end of a response is not used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from mor_core.errors import Invalid
from torch import Tensor, nn
from torch.nn.functional import pad

from mor_trainer.model.packed_groups import PackedGroups, current
from mor_trainer.model.padded_batches import similar

KINDS = {"linear_attention", "conv"}
"""Kinds of layers that carry a state, as ``layer_types`` names them."""
_CACHES = ("cache_params", "past_key_values")
"""Names of a layer's argument that holds its state."""
_PLAN = "seq_idx"
"""Argument that models hand to their recurrent layers, also when activations are recomputed: the number of a token's
sequence, in batches that are packed."""
_SHORTEST = 2
"""Tokens of the shortest pass over responses; for one, layers have code that changes the state in place."""


class LayerState:
    """State of a layer for a batch of sequences, in place of transformers' cache, which copies it without gradient."""

    def __init__(self, convolution: Tensor | None = None, recurrent: Tensor | None = None) -> None:
        """Hold what earlier tokens left; nothing at the start of a sequence."""
        self._continues = convolution is not None or recurrent is not None
        self.convolution = convolution
        """Last inputs of the layer's convolution, ``[batch, channels, kernel]``."""
        self.recurrent = recurrent
        """``[batch, heads, key, value]``."""

    def forked(self, rows: Int[Tensor, " batch"]) -> LayerState:
        """Return the state of some rows, each as often as it is named."""
        states = (self.convolution, self.recurrent)
        return LayerState(*(None if state is None else state.index_select(0, rows) for state in states))

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        return self._continues

    @property
    def layers(self) -> LayerState:
        return self

    def __getitem__(self, layer: int) -> LayerState:
        return self

    @property
    def recurrent_states(self) -> list[Tensor | None]:
        return [self.recurrent]

    def update_conv_state(self, inputs: Tensor, *_: Any, conv_kernel_size: int, **__: Any) -> Tensor:
        """Keep the last inputs of a convolution, and return all with those before them."""
        if self.convolution is not None:
            inputs = torch.cat([self.convolution, inputs], -1)
        missing = max(0, conv_kernel_size - inputs.shape[-1])
        self.convolution = pad(inputs, (missing, 0))[..., -conv_kernel_size:]
        return inputs

    def update_recurrent_state(self, state: Tensor, *_: Any, **__: Any) -> Tensor:
        self.recurrent = state
        return state


@dataclass(frozen=True, eq=False)
class ForkPlan:
    """Passes of a recurrent layer over a sequence of groups."""

    prompts: tuple[tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]], ...]
    """Places of prompts, padded on the left, and where they are no padding."""
    responses: tuple[tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]], ...]
    """Places of responses, padded on the right, and the row of each one's prompt among all prompts."""
    results: Int[Tensor, " length"]
    """Index of each place of the sequence in the flattened results of all passes."""

    @classmethod
    def of(cls, packed: PackedGroups) -> ForkPlan:
        """Divide a sequence into passes. A function of the lengths alone."""
        lengths = [length for group in packed.groups for length in (group.prompt, *group.responses)]
        ends = list(accumulate(lengths, initial=0))
        spans = iter([range(first, first + length) for first, length in zip(ends, lengths, strict=False)])
        prompts: list[range] = []
        responses: list[tuple[range, int]] = []
        for number, group in enumerate(packed.groups):
            prompts.append(next(spans))
            responses += [(span, number) for _ in group.responses if (span := next(spans))]
        results = np.empty(ends[-1], dtype=np.int64)
        device = packed.alone.device
        done = 0

        def batch(spans: Sequence[range], left: bool, shortest: int) -> Any:
            nonlocal done
            width = max(shortest, *map(len, spans))
            places = np.empty((len(spans), width), dtype=np.int64)
            for row, span in enumerate(spans):
                before = width - len(span) if left else 0
                places[row] = np.pad(np.arange(span.start, span.stop), (before, width - len(span) - before), "edge")
                results[span.start : span.stop] = done + row * width + before + np.arange(len(span))
            done += len(spans) * width
            return torch.from_numpy(places).to(device)

        order = similar([(len(span),) for span in prompts])
        rows = {number: row for row, number in enumerate(number for numbers in order for number in numbers)}
        first = []
        for numbers in order:
            own = [prompts[number] for number in numbers]
            places = batch(own, True, 1)
            width = places.shape[1]
            within = torch.tensor([[at >= width - len(span) for at in range(width)] for span in own], device=device)
            first.append((places, within))
        then = []
        for numbers in similar([(len(span),) for span, _ in responses]):
            own = [responses[number][0] for number in numbers]
            owners = torch.tensor([rows[responses[number][1]] for number in numbers], device=device)
            then.append((batch(own, False, _SHORTEST), owners))
        return cls(tuple(first), tuple(then), torch.from_numpy(results).to(device))


def _forked(
    plain: Callable[..., Tensor], cache: str, hidden_states: Float[Tensor, "1 length width"], **options: Any
) -> Float[Tensor, "1 length width"]:
    plan = options.get(_PLAN)
    if not isinstance(plan, ForkPlan):
        return plain(hidden_states=hidden_states, **options)

    def run(places: Tensor, state: LayerState, within: Tensor | None) -> Tensor:
        states = hidden_states[0].index_select(0, places.flatten()).view(*places.shape, -1)
        return plain(hidden_states=states, attention_mask=within, **{cache: state}).flatten(0, 1)

    states, outputs = [], []
    for places, within in plan.prompts:
        states.append(LayerState())
        outputs.append(run(places, states[-1], within))
    kinds = [[state.convolution for state in states], [state.recurrent for state in states]]
    ends = LayerState(*(None if kind[0] is None else torch.cat(kind) for kind in kinds))  # type: ignore[arg-type]
    outputs += [run(places, ends.forked(rows), None) for places, rows in plan.responses]
    return torch.cat(outputs).index_select(0, plan.results)[None]


def install(decoder: nn.Module) -> None:
    """Let the recurrent layers of a language model fork their states; they compute as before for other batches.

    Raises:
        Invalid: such a layer keeps its state elsewhere than in transformers' cache.
    """
    wanted = sum(kind in KINDS for kind in getattr(decoder.config, "layer_types", None) or ())
    layers = [
        (module, name)
        for module in decoder.modules()
        if getattr(module, "layer_type", None) in KINDS
        for name in _CACHES
        if name in inspect.signature(module.forward).parameters
    ]
    if len(layers) != wanted:
        raise Invalid(f"{wanted} recurrent layers, of which {len(layers)} keep their state in transformers' cache")
    for module, cache in layers:
        module.forward = partial(_forked, module.forward, cache)
    if layers:
        decoder.register_forward_pre_hook(_hand_plan, with_kwargs=True)


def _hand_plan(module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    packed = current()
    return arguments, options if packed is None else options | {_PLAN: ForkPlan.of(packed)}
