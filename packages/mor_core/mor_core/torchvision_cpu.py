"""Lets torchvision from PyPI, a CUDA build, import beside a CPU build of torch.

``torchvision/_C.so`` of the PyPI wheel needs CUDA libraries, so beside a CPU torch it does not load, torchvision's
import stops at "operator torchvision::nms does not exist", and every import of a transformers processor with it. What
processors use of torchvision (resize, normalise) is plain torch; declaring the schemas of two operators that stay
unavailable is enough. Nothing happens unless torchvision is imported beside a CPU torch.

The distribution installs ``mor_torchvision_cpu.pth``, which calls ``install`` when an interpreter starts: the engine's
processes and the processors' imports lie outside our control, an entry point would run too late.
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


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is not None or _libraries:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.split("(", maxsplit=1)[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)  # its operators live as long as it does


class _Finder(MetaPathFinder):
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
    """Watch for the import of torchvision. Calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
