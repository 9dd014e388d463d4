"""Families that vLLM does not serve as the trainer trains them, refused by name before vLLM starts.

Whatever else fails, the self-test of the rollout service finds; docs/model-families.md has what was tried.
"""

from __future__ import annotations

from typing import Any, Literal

from mor_core.errors import Invalid

_ELSEWHERE = "set MOR_BACKEND=transformers"
_SCALE = (
    "vLLM scales its logits by logit_scale, and transformers, with which it is trained, does not, so that they would "
    "sample and train different policies"
)
_NO_CODE = "vLLM has no code of its own for this family"
_REFUSED = {
    "aya_vision": _SCALE,
    "cohere2_vision": _SCALE,
    "deepseek_vl": _NO_CODE,
    "ernie4_5_vl_moe": "vLLM reads another configuration of this family than transformers writes",
    "janus": _NO_CODE,
    "kimi_k25": _NO_CODE,
    "mllama": _NO_CODE,
    "ovis2": _NO_CODE,
    "paligemma": "vLLM makes other tokens of a prompt than its processor",
    "qwen3_vl_moe": "vLLM expects the weights of its experts in another layout than transformers writes",
}
"""Reasons by family, on every device."""
_OTHER_NUMBERS = "on CPUs vLLM computes other log-probabilities than transformers, by 0.3 nats on a tiny checkpoint"
_REFUSED_ON_CPUS = {
    "gemma3n": _OTHER_NUMBERS,
    "gemma4": _OTHER_NUMBERS,
    "llama4": "vLLM computes its experts with Triton, which needs a GPU",
}
_NO_ADAPTERS = frozenset({"gemma3n", "glm46v", "llava_onevision"})
"""Families for which vLLM loads no LoRA adapters."""
_ONE_PICTURE = {
    "llava_onevision": "vLLM makes other tokens than its processor of a prompt with several pictures",
}
"""Reasons why prompts may have one picture only."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names of the number of experts in configurations, as vLLM reads them."""


def check_vllm_family(
    model: str,
    config: Any,
    *,
    device: Literal["cpu", "cuda"],
    dtype: str,
    adapters: bool = False,
    images: int | None = None,
) -> None:
    """Check that vLLM serves a checkpoint's family.

    ``config``: of transformers. ``dtype``: number format. ``adapters``: vLLM is to load LoRA adapters. ``images``:
    most pictures of a prompt.

    Raises:
        Invalid: it does not, with the reason.
    """
    family = str(config.model_type)
    reason = _REFUSED.get(family) or (_REFUSED_ON_CPUS.get(family) if device == "cpu" else None)
    if reason is not None:
        raise Invalid(f"model {model!r} ({family}): {reason}; {_ELSEWHERE}")
    if family in _ONE_PICTURE and (images is None or images > 1):
        raise Invalid(f"model {model!r} ({family}): {_ONE_PICTURE[family]}; set MOR_MAX_IMAGES=1, or {_ELSEWHERE}")
    if adapters and family in _NO_ADAPTERS:
        raise Invalid(
            f"model {model!r} ({family}): vLLM loads no adapters for this family; set MOR_LORA_MAX_RANK=0 and train all"
            f" weights, or {_ELSEWHERE}"
        )
    if device == "cpu" and adapters and has_experts(config):
        raise Invalid(
            f"model {model!r} ({family}) has experts, which vLLM computes beside adapters with Triton, which needs a"
            f" GPU; set MOR_LORA_MAX_RANK=0 and train all weights, or {_ELSEWHERE}"
        )
    if device == "cpu" and dtype != "bfloat16" and has_states(config):
        raise Invalid(
            f"model {model!r} ({family}) has layers that carry a state, which vLLM computes on CPUs in bfloat16 only, "
            f"not in {dtype}; set MOR_DTYPE=bfloat16 or MOR_BACKEND=transformers"
        )


def has_experts(config: Any) -> bool:
    """Return whether the model is a mixture of experts."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in _EXPERTS)


def has_states(config: Any) -> bool:
    """Return whether some layers carry a state from token to token instead of attending."""
    layers = getattr(config.get_text_config(), "layer_types", None) or ()
    return any(kind == "linear_attention" or not kind.endswith("attention") for kind in layers)
