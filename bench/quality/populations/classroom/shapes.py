"""Domain Shapes: pictures of easy-vqa (MIT), up to three together. Its clients like sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import easy_vqa
from PIL import Image
from three_domains.plots import split_series
from three_domains.questions import PICTURE_SIZE, AnnotatedPicture, Split, listing, word_patterns

from .answers import Choice, ChoiceAnswers

_COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
_FORMS = ("circle", "rectangle", "triangle")
_CELLS = ((0, 0), (1, 0), (0, 1), (1, 1))
_SIDE = PICTURE_SIZE // 2

ANSWERS = ChoiceAnswers(
    "shapes",
    "sentence",
    "in the picture",
    {
        "colour": word_patterns({colour: colour.replace("gray", "gr[ae]y") for colour in _COLOURS}),
        "form": word_patterns({form: f"{form}s?" for form in _FORMS}),
        "presence": word_patterns({"there": "yes|there", "absent": "no|absent"}),
    },
)


class Shapes:
    """Generator of pictures with one to three shapes, which differ in form and colour."""

    def __init__(self, seed: int) -> None:
        self._kinds = _kinds()
        self._files: dict[str, str] = {str(number): path for number, path in easy_vqa.get_train_image_paths().items()}
        self._parts = split_series(sorted(self._kinds), Random(f"{seed}/shapes"))

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        for _ in range(count):
            shown: dict[str, tuple[str, str]] = {}
            for number in rng.sample(self._parts[split], 8):
                form, colour = self._kinds[number]
                if len(shown) < 3 and not any(form == one or colour == other for one, other in shown.values()):
                    shown[number] = (form, colour)
            if rng.random() < 0.4:
                shown = dict(list(shown.items())[:2])
            yield self._picture(shown, rng)

    def _picture(self, shown: dict[str, tuple[str, str]], rng: Random) -> AnnotatedPicture:
        image = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), (245, 245, 245))
        for (column, row), number in zip(rng.sample(_CELLS, len(shown)), shown, strict=True):
            with Image.open(Path(self._files[number])) as shape:
                cell = shape.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            image.paste(cell, (column * _SIDE, row * _SIDE))
        form, colour = rng.choice(list(shown.values()))
        colours = {colour for _, colour in shown.values()}
        sought = rng.choice(sorted(colours) if rng.random() < 0.5 else sorted(set(_COLOURS) - colours))
        presence = "there" if sought in colours else "absent"
        choices = (
            Choice("colour", f"What colour is the {form}?", colour, _COLOURS, f"the {form} is {{}}."),
            Choice("form", f"Which shape is {colour}?", form, _FORMS, f"the {{}} is {colour}."),
            Choice(
                "presence",
                f"Is a {sought} shape there or absent?",
                presence,
                ("there", "absent"),
                f"a {sought} one is {{}}.",
            ),
        )
        caption = listing([f"a {colour} {form}" for form, colour in shown.values()])
        return AnnotatedPicture(
            image,
            frozenset(f"shape:{number}" for number in shown),
            caption,
            tuple(choice.question("shapes") for choice in choices),
        )


def _kinds() -> dict[str, tuple[str, str]]:
    """Read form and colour of each picture from the package's own questions and answers."""
    found: dict[str, dict[str, str]] = {}
    for question, answer, number in zip(*easy_vqa.get_train_questions(), strict=True):
        if answer in _FORMS or answer in _COLOURS:
            found.setdefault(str(number), {})["form" if answer in _FORMS else "colour"] = answer
        elif answer == "yes" and " not " not in question:
            words = {word.strip("?") for word in question.split()}
            for name, known in (("form", _FORMS), ("colour", _COLOURS)):
                if len(named := words & set(known)) == 1:
                    found.setdefault(str(number), {})[name] = named.pop()
    return {number: (kind["form"], kind["colour"]) for number, kind in found.items() if len(kind) == 2}
