"""Import hook by which torchvision from PyPI, a CUDA build, works with a CPU build of torch.

``torchvision/_C.so`` of the PyPI wheel needs CUDA libraries, so it does not load with a CPU torch. torchvision's
import then fails with "operator torchvision::nms does not exist", and with it every import of a transformers processor.
Processors use only parts of torchvision that are plain torch (resize, normalise). So it is enough to declare the
schemas of two operators, which stay unavailable. Without a CPU torch or without torchvision the hook does nothing.

The distribution installs ``mor_torchvision_cpu.pth``, which calls ``install`` when an interpreter starts. An entry
point would run too late, because the engine's processes import the processors on their own.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []
"""The library of this process, once declared."""


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is not None or _libraries:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.split("(", maxsplit=1)[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)  # its operators exist as long as this object


class _TorchvisionFinder(MetaPathFinder):
    """Finder that declares the operators just before torchvision is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            _declare_operators()
            load(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Install the import hook for torchvision. A second call has no effect."""
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())
