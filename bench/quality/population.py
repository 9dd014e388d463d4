"""Simulated clients: skills and size of their data, label noise, and architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from three_domains.questions import Gold

from quality.objectives import Style

SKILLS: Mapping[str, tuple[str, ...]] = {
    "detail": ("detail/list", "detail/count", "detail/corner"),
    "medical": ("medical/region", "medical/side", "medical/plane"),
    "chart": ("chart/bar", "chart/line", "chart/count"),
}
_ALL = tuple(skill for skills in SKILLS.values() for skill in skills)

_DUAL = "--backbone dual-encoder --text {parts}/minilm --lr 1e-3 --weight-decay 0.05 --mismatch 4"
ARCHITECTURES = {
    "dinov2": f"{_DUAL} --vision {{parts}}/dinov2-small --set vision_layers=[8] --set image_size=168",
    "efficientnet": f"{_DUAL} --vision {{parts}}/efficientnet-lite2 --set vision_layers=[-1,-2] --set image_size=168",
    "vlm": "--backbone vlm --model {base} --set likelihood=0.3 --lr 2e-4",
    "text": "--backbone text --model {parts}/minilm --lr 1.5e-4",
}
"""Options of ``mor-reward train``. ``dinov2`` and ``efficientnet`` are combined with MiniLM in a dual encoder; ``text``
is MiniLM alone, without pictures."""


@dataclass(frozen=True)
class SimulatedClient:
    name: str
    skills: tuple[str, ...]
    architecture: str
    pairs: int
    """Number of preference pairs, divided evenly among its domains."""
    epochs: int
    flipped: float = 0.0
    """Share of its labels that are reversed."""
    taste: Style | None = None
    """Its preference if it differs from the taste of its domains."""

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(skill.partition("/")[0] for skill in self.skills))


CLIENTS = (
    SimulatedClient("detail-lists", ("detail/list",), "efficientnet", 900, 5),
    SimulatedClient("detail-places", ("detail/corner", "detail/count"), "dinov2", 1200, 6),
    SimulatedClient("medical-regions", ("medical/region",), "vlm", 900, 2),
    SimulatedClient("medical-slices", ("medical/side", "medical/plane"), "dinov2", 900, 6),
    SimulatedClient("chart-bars", ("chart/bar", "chart/count"), "dinov2", 1200, 6),
    SimulatedClient("chart-lines", ("chart/line",), "efficientnet", 700, 5),
    SimulatedClient("scenes-and-charts", ("detail/list", "chart/bar"), "efficientnet", 700, 5),
    SimulatedClient("generalist", _ALL, "dinov2", 1800, 4, flipped=0.2),
    SimulatedClient("small", SKILLS["medical"], "efficientnet", 150, 5),
    SimulatedClient("wording", _ALL, "text", 900, 4),
    SimulatedClient("complete", _ALL, "text", 900, 4, taste="complete"),
    SimulatedClient("brief", _ALL, "text", 900, 4, taste="brief"),
)
"""Two or more clients per domain, with complementary sub-skills and overlaps, and two with their own taste."""


def skill(gold: Gold) -> str:
    """Return the sub-skill of a question."""
    task = gold["task"]
    if gold["domain"] == "chart" and task == "value":
        task = "line" if gold["target"] in ("start", "end") else "bar"
    return f"{gold['domain']}/{task}"


def options(architecture: str, epochs: int, base: str, parts: str) -> list[str]:
    """Return the options of ``mor-reward train``, apart from its data."""
    return [*ARCHITECTURES[architecture].format(base=base, parts=parts).split(), "--epochs", str(epochs)]
