"""Parameters of a checkpoint, counted from the headers of its files, without reading its weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mor_core.adapted_layers import is_expert_router
from mor_core.optimisation import LoraTuning
from mor_core.runs import RunSpec
from mor_core.tensor_headers import read_header
from mor_core.weight_files import weight_files

_VISION = frozenset({"visual", "vision", "vision_model", "vision_tower", "vision_encoder", "vpm"})
"""Parts of tensors' names by which families mark the vision tower. One that is not known counts as trained."""
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class ModelParameters:
    """Parameters of a model."""

    total: int
    language: int
    """Those outside of the vision tower, at most the ones that are trained while it is frozen."""
    linear: tuple[tuple[int, int], ...] = ()
    """Shapes of the matrices that adapters may adapt."""
    stored_bytes: int = 0
    """Bytes of the files."""

    @classmethod
    def of_folder(cls, folder: Path) -> ModelParameters:
        """Count the parameters of a checkpoint.

        Raises:
            Invalid: the folder has no weights, or files that are damaged.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        stored = 0
        for file, names in weight_files(folder).items():
            entries, _ = read_header(file)
            stored += file.stat().st_size
            shapes |= {name: tuple(entry["shape"]) for name, entry in entries.items() if names is None or name in names}
        language = {name: shape for name, shape in shapes.items() if _VISION.isdisjoint(name.split("."))}
        return cls(
            total=sum(map(math.prod, shapes.values())),
            language=sum(map(math.prod, language.values())),
            linear=tuple(
                (shape[0], shape[1])
                for name, shape in language.items()
                if len(shape) == 2 and _LAYER.search(name) and not is_expert_router(name)
            ),
            stored_bytes=stored,
        )

    def trained(self, spec: RunSpec) -> int:
        """Return the parameters that a run trains, at most: those of adapters, of the language model, or all."""
        if isinstance(spec.tuning, LoraTuning):
            return spec.tuning.rank * sum(map(sum, self.linear))
        return self.language if spec.freeze_vision else self.total
