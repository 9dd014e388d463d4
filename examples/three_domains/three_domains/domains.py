"""The three domains by name: their picture makers (which need the sources) and their answers (which need nothing)."""

from __future__ import annotations

from functools import lru_cache

from three_domains import sources
from three_domains.chart import ChartAnswers
from three_domains.detail import DetailAnswers
from three_domains.medical import MedicalAnswers
from three_domains.plots import Plots, load_quantities
from three_domains.questions import Answers, PictureMaker
from three_domains.scenes import Scenes, emoji_files, stamp_files
from three_domains.slices import Slices, load_regions, load_volumes

ANSWERS: dict[str, Answers] = {answers.name: answers for answers in (DetailAnswers(), MedicalAnswers(), ChartAnswers())}


@lru_cache(maxsize=3)
def picture_maker(domain: str, seed: int) -> PictureMaker:
    """Return the picture maker of one domain and fetch its sources; ``seed`` determines the splits.

    Raises:
        SourceError: a source without a substitute is not available.
    """
    if domain == "chart":
        return Plots(load_quantities(sources.fetch("series")), seed)
    if domain == "medical":
        atlas = sources.fetch("atlas")
        brain = sources.fetch("brain") if sources.has_apt() else None
        return Slices(load_volumes(atlas, brain), load_regions(atlas))
    if sources.has_apt():
        return Scenes(stamp_files(sources.fetch("stamps")), seed)
    return Scenes(emoji_files(sources.fetch("emoji")), seed)


def fetch_pictures() -> list[str]:
    """Fetch the sources of the three domains; return a line for every substitute used on a machine without apt.

    Raises:
        SourceError: a source is not available.
    """
    names = ["atlas", "series", *(["stamps", "brain"] if sources.has_apt() else ["emoji"])]
    for name in names:
        sources.fetch(name)
    if sources.has_apt():
        return []
    return [
        "no apt on this machine: Detail uses Noto Emoji drawings (npm) in place of Debian's photo cut-outs",
        "no apt on this machine: Medical uses one brain template (PyPI) in place of three",
    ]
