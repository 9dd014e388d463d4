"""Adapters reach the linear layers of each family's language model, and the log names those that they do not."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from mor_core.errors import Invalid
from mor_core.optimisation import LoraTuning
from mor_trainer.model import loading
from structlog.testing import capture_logs

from tests import more_model_families
from tests.model_families import FAMILIES

USUAL = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {"gate_proj", "up_proj", "down_proj"}
FORMER = LoraTuning(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


def adapted(family: str, tuning: LoraTuning) -> tuple[set[str], list[str], list[str]]:
    """Return the last parts of the adapted layers' names, and what the log says has adapters and has none."""
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(FAMILIES[family]().config)
    with capture_logs() as logs:
        loading.tune(model, tuning, freeze_vision=True)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name and "visual" not in name and "vision" not in name for name in names)
    (told,) = (entry for entry in logs if entry["event"] == "adapters")
    return {name.split(".lora_")[0].rpartition(".")[2] for name in names}, told["layers"], told["without"]


@pytest.mark.parametrize(
    ("family", "layers", "without"),
    [
        ("qwen2_vl", USUAL | DENSE, set()),
        ("glm4v", USUAL | {"gate_up_proj", "down_proj"}, set()),
        (
            "qwen3_5",
            USUAL | DENSE | {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"},
            {"linear_attn.conv1d"},
        ),
        ("qwen3_vl_moe", USUAL, {"experts.gate_up_proj", "experts.down_proj", "mlp.gate"}),
        ("llama4", USUAL | DENSE, {"experts.gate_up_proj", "experts.down_proj", "feed_forward.router", "lm_head"}),
        ("lfm2_vl", {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}, {"conv.conv"}),
    ],
)
def test_all_linear_layers_of_a_family_get_an_adapter(family: str, layers: set[str], without: set[str]) -> None:
    assert more_model_families.llama4 is FAMILIES["llama4"]
    found, told, left = adapted(family, LoraTuning(rank=4))
    assert found == layers == {name.rpartition(".")[2] for name in told}
    assert set(left) == without


def test_named_layers_alone_get_one(tiny_family: str = "glm4v") -> None:
    found, _, left = adapted(tiny_family, LoraTuning(rank=4, targets=("q_proj",)))
    assert found == {"q_proj"}
    assert "mlp.gate_up_proj" in left


@pytest.mark.parametrize("targets", [("q_proj", "gate_projection"), ("lm_head",), ("patch_embed",), ()])
def test_names_of_no_layer_are_refused_with_those_that_there_are(targets: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match=r"name no linear layer"):
        adapted("glm4v", LoraTuning(rank=4, targets=targets))


def test_the_former_default_of_a_stored_run_goes_on() -> None:
    """It names layers that GLM-4V does not have."""
    assert adapted("glm4v", FORMER)[0] == USUAL | {"down_proj"}
