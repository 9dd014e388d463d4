"""Twelve clients over the three domains of the demonstration: scenes, slices of brains, and charts."""

from __future__ import annotations

from pathlib import Path

from mor_reward.backbones import AnyConfig, DualEncoderConfig
from mor_reward.train_config import TrainConfig
from three_domains import prepare as demonstration
from three_domains.domains import ANSWERS, picture_maker
from three_domains.questions import Gold

from quality.population import ReferenceModels, SimulatedClient, Start

__all__ = [
    "ANSWERS",
    "ARCHITECTURES",
    "CLIENTS",
    "REFERENCES",
    "SKILLS",
    "averaged",
    "picture_maker",
    "prepare",
    "skill",
]

SKILLS = {
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
"""``dinov2`` and ``efficientnet`` are combined with MiniLM in a dual encoder; ``text`` is MiniLM alone, without
pictures."""

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

REFERENCES = ReferenceModels(
    central=("vlm", 2), central_when_tiny=("dinov2", 3), anchored=("efficientnet", 8), averaged="dinov2"
)


def averaged(parts: Path) -> tuple[AnyConfig, TrainConfig]:
    return (
        DualEncoderConfig(vision=f"{parts}/dinov2-small", text=f"{parts}/minilm", image_size=168, vision_layers=(8,)),
        TrainConfig(lr=1e-3, weight_decay=0.05, mismatch=4),
    )


def skill(gold: Gold) -> str:
    task = gold["task"]
    if gold["domain"] == "chart" and task == "value":
        task = "line" if gold["target"] in ("start", "end") else "bar"
    return f"{gold['domain']}/{task}"


def prepare(demo: Path, state: Path, pictures: int) -> Start:
    """Make the demonstration's base model and encoders in ``demo``, for every size of the experiment the same."""
    for step in demonstration.steps(demo, "default", 0)[:3]:
        step.run()
    return Start(demo / "base", demo / "parts")
