"""Thirteen clients over shapes, handwritten digits and maps: a population on which choices are judged a second time.

Sources, sub-skills and, but for DINOv2, the families of the reward models are others than the demonstration's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mor_reward.backbones import AnyConfig, DualEncoderConfig
from mor_reward.train_config import TrainConfig
from three_domains.questions import Gold, PictureMaker
from three_domains.sources import Source, fetch_source

from quality import base_model
from quality.population import ReferenceModels, SimulatedClient, Start, load

from . import digits, encoders, maps, shapes

SKILLS = {
    "shapes": ("shapes/colour", "shapes/form", "shapes/presence"),
    "digits": ("digits/read", "digits/largest", "digits/count"),
    "maps": ("maps/continent", "maps/larger", "maps/side"),
}
_ALL = tuple(skill for skills in SKILLS.values() for skill in skills)

_DUAL = "--backbone dual-encoder --weight-decay 0.05 --mismatch 4"
ARCHITECTURES = {
    "lite0-llama": f"{_DUAL} --vision {{parts}}/lite0 --text {{parts}}/llama --lr 1e-3 --set vision_layers=[-1,-2] "
    "--set image_size=168",
    "dinov2-llama": f"{_DUAL} --vision {{parts}}/dinov2 --text {{parts}}/llama --lr 1e-3 --set vision_layers=[5,9] "
    "--set image_size=112",
    "resnet-bert": f"{_DUAL} --vision {{parts}}/resnet --text {{parts}}/bert --lr 5e-4 --set freeze=false "
    "--set image_size=96",
    "vlm": "--backbone vlm --model {base} --set likelihood=0.3 --lr 2e-4",
    "llama": "--backbone text --model {parts}/llama --lr 1e-4",
}
"""``llama`` is the lower part of SmolLM2: a tower of texts in a dual encoder, or a reward model alone, without
pictures. ``resnet-bert`` starts with a network that has seen no picture, and is trained as a whole."""

CLIENTS = (
    SimulatedClient("shapes-colours", ("shapes/colour",), "lite0-llama", 700, 5),
    SimulatedClient("shapes-forms", ("shapes/form", "shapes/presence"), "resnet-bert", 1200, 6),
    SimulatedClient("digits-reader", ("digits/read",), "vlm", 1000, 2),
    SimulatedClient("digits-order", ("digits/largest", "digits/count"), "dinov2-llama", 1200, 6),
    SimulatedClient("maps-continents", ("maps/continent",), "dinov2-llama", 900, 6),
    SimulatedClient("maps-places", ("maps/larger", "maps/side"), "lite0-llama", 1000, 5),
    SimulatedClient("shapes-and-digits", ("shapes/form", "digits/count"), "lite0-llama", 800, 5),
    SimulatedClient("digits-and-maps", ("digits/read", "digits/largest", "maps/side"), "resnet-bert", 900, 6),
    SimulatedClient("generalist", _ALL, "lite0-llama", 1800, 4, flipped=0.2),
    SimulatedClient("few-maps", SKILLS["maps"], "dinov2-llama", 150, 5),
    SimulatedClient("wording", _ALL, "llama", 900, 3),
    SimulatedClient("complete", _ALL, "llama", 900, 3, taste="complete"),
    SimulatedClient("brief", _ALL, "llama", 900, 3, taste="brief"),
)
"""Two or more clients per sub-skill, with overlaps, two without pictures that have their own taste, and noise."""

REFERENCES = ReferenceModels(
    central=("vlm", 2), central_when_tiny=("lite0-llama", 3), anchored=("lite0-llama", 8), averaged="lite0-llama"
)
ANSWERS = {domain.ANSWERS.name: domain.ANSWERS for domain in (shapes, digits, maps)}

DIGITS = Source(
    "scikit-learn",
    "1.5.2",
    "pip",
    "f8b0ccd4a902836493e026c03256e8b206656f91fbcc4fde28c57a5b752561f1",
    "BSD-3-Clause; UCI digits: CC-BY-4.0",
    platform="manylinux2014_x86_64",
)
COUNTRIES = Source(
    "geopandas",
    "0.14.4",
    "pip",
    "3bb6473cb59d51e1a7fe2dbc24a1a063fb0ebdeddf3ce08ddbf8c7ddc99689aa",
    "BSD-3-Clause; Natural Earth: public domain",
)


def averaged(parts: Path) -> tuple[AnyConfig, TrainConfig]:
    config = DualEncoderConfig(vision=f"{parts}/lite0", text=f"{parts}/llama", image_size=168, vision_layers=(-1, -2))
    return config, TrainConfig(lr=1e-3, weight_decay=0.05, mismatch=4)


def skill(gold: Gold) -> str:
    return f"{gold['domain']}/{gold['task']}"


@lru_cache(maxsize=3)
def picture_maker(domain: str, seed: int) -> PictureMaker:
    """Return the picture maker of one domain and fetch its source; ``seed`` determines the splits.

    Raises:
        SourceError: a source is not available.
    """
    if domain == "shapes":
        return shapes.Shapes(seed)
    if domain == "digits":
        return digits.Digits(fetch_source(DIGITS), seed)
    return maps.Maps(maps.read_countries(fetch_source(COUNTRIES)), seed)


def prepare(demo: Path, state: Path, pictures: int) -> Start:
    """Write the encoders beside the demonstration's, and tune a base model on this population's pictures."""
    start = Start(state / "base", demo / "classroom-parts")
    encoders.export(start.parts)
    base_model.make(load(Path(__file__).parent), start.base, pictures)
    return start
