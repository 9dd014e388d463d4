"""Options of ``mor-reward train`` for differential privacy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from mor_core.errors import Invalid

from mor_reward import given_paths

if TYPE_CHECKING:
    from mor_reward.train_config import PrivateTraining

Epsilon = Annotated[
    float | None, typer.Option(help="Train with differential privacy: bound ε of what the model reveals of one unit.")
]
Delta = Annotated[
    float | None, typer.Option(help="Probability that ε is exceeded; by default at most a tenth of 1/units.")
]
Unit = Annotated[str, typer.Option(help="What is hidden: all pairs of one picture or person, or one pair.")]
Part = Annotated[str, typer.Option(help="What sees private data: the linear head, or all that is trained otherwise.")]
Public = Annotated[
    Path | None, typer.Option(help="Public preferences, whose features scale the head; they are not protected.")
]
Clip = Annotated[float, typer.Option(help="Bound of a unit's gradient with --dp-part trained.")]


def private_training(
    epsilon: float | None, *, delta: float | None, unit: str, part: str, clip: float, public: Path | None
) -> PrivateTraining | None:
    """Return the settings of a private training, ``None`` without ``epsilon``.

    Raises:
        Invalid: an option is given without ``epsilon``, or public data with ``part`` = ``trained``.
        ValidationError: a value is out of its range.
    """
    from mor_reward.train_config import PrivateTraining

    if public is not None:
        given_paths.check_data(public)
        if part == "trained":
            raise Invalid("--dp-public scales the linear head; leave it out with --dp-part trained")
    if epsilon is not None:
        values = {"epsilon": epsilon, "delta": delta, "unit": unit, "part": part, "clip": clip}
        return PrivateTraining.model_validate(values)
    if (delta, unit, part, clip, public) != (None, "picture", "head", 1.0, None):
        raise Invalid("--dp-delta, --dp-unit, --dp-part, --dp-clip and --dp-public need --dp-epsilon; give it, as 3")
    return None
