"""Population: simulated clients over several domains, with pictures, questions and exact answers, in one folder.

A folder is a Python package. Its ``__init__.py`` defines the names below; other modules of the folder are imported
relative to it (``from .pages import ...``).

=================  ================================================================================================
name               meaning
=================  ================================================================================================
``SKILLS``         domain -> its sub-skills, each ``DOMAIN/NAME``
``CLIENTS``        the ``SimulatedClient``s; at least one without a taste of its own
``ARCHITECTURES``  name -> options of ``mor-reward train``, with ``{base}`` and ``{parts}`` for the folders of ``Start``
``REFERENCES``     ``ReferenceModels``: architectures of the reward models that no client serves
``ANSWERS``        domain -> ``three_domains.questions.Answers``: drafts, true and false answers, taste, checker
``skill``          (gold) -> sub-skill of a question
``picture_maker``  (domain, seed) -> ``three_domains.questions.PictureMaker``, which keeps the splits' material apart
``prepare``        (demo, state, pictures) -> ``Start``; it makes base model and encoders that do not exist
``averaged``       (parts) -> backbone and training of the architecture that is averaged
=================  ================================================================================================

A base model for a population's own pictures is made by ``quality.base_model``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from mor_reward.backbones import AnyConfig
from mor_reward.train_config import TrainConfig
from three_domains.questions import Answers, Gold, PictureMaker

from quality.objectives import Style

FOLDERS = Path(__file__).parent / "populations"
DEFAULT = FOLDERS / "demonstration"


class PopulationError(ValueError):
    """A folder is no population; the message names what is missing or does not fit."""


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

    def of(self, domain: str) -> list[str]:
        """List its sub-skills of a domain."""
        return [skill for skill in self.skills if skill.startswith(f"{domain}/")]


@dataclass(frozen=True)
class ReferenceModels:
    """Architecture, and epochs, of the reward models that no client serves."""

    central: tuple[str, int]
    """Model of all clients' pairs in one place."""
    central_when_tiny: tuple[str, int]
    """The same at the size for trials of the code, where seconds count."""
    anchored: tuple[str, int]
    """Model of the anchors alone."""
    averaged: str
    """Architecture of the clients whose parameters are averaged."""


@dataclass(frozen=True)
class Start:
    """Checkpoints that everything starts from."""

    base: Path
    """Base model: the policy before any alignment."""
    parts: Path
    """Folder of pretrained encoders."""


@dataclass(frozen=True)
class Population:
    """Content of a population's folder. A copy in another process is read from the folder again."""

    folder: Path
    skills: Mapping[str, tuple[str, ...]]
    clients: tuple[SimulatedClient, ...]
    architectures: Mapping[str, str]
    references: ReferenceModels
    answers: Mapping[str, Answers]
    skill: Callable[[Gold], str]
    picture_maker: Callable[[str, int], PictureMaker]
    prepare: Callable[[Path, Path, int], Start]
    averaged: Callable[[Path], tuple[AnyConfig, TrainConfig]]

    def __reduce__(self) -> tuple[Callable[[Path], Population], tuple[Path]]:
        return load, (self.folder,)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.skills)

    def options(self, architecture: str, epochs: int, start: Start) -> list[str]:
        """Return the options of ``mor-reward train``, apart from its data."""
        filled = self.architectures[architecture].format(base=start.base, parts=start.parts)
        return [*filled.split(), "--epochs", str(epochs)]

    def client(self, name: str) -> SimulatedClient:
        return next(client for client in self.clients if client.name == name)


@cache
def load(folder: Path) -> Population:
    """Import the population of a folder.

    Raises:
        PopulationError: the folder lacks something that the module's docstring lists, or its parts do not fit.
    """
    module = _module(folder.resolve())
    missing = [name for name in _NAMES if not hasattr(module, name)]
    if missing:
        raise PopulationError(
            f"{folder / '__init__.py'} does not define {', '.join(missing)}; a population defines {', '.join(_NAMES)} "
            "(see bench/quality/population.py)"
        )
    parts = {field: getattr(module, name) for name, field in _NAMES.items()}
    population = Population(folder.resolve(), **parts)
    _check(population)
    return population


_NAMES = {
    "SKILLS": "skills",
    "CLIENTS": "clients",
    "ARCHITECTURES": "architectures",
    "REFERENCES": "references",
    "ANSWERS": "answers",
    "skill": "skill",
    "picture_maker": "picture_maker",
    "prepare": "prepare",
    "averaged": "averaged",
}
"""Names of the folder's package, and the fields that they fill."""


def _module(folder: Path) -> ModuleType:
    """Import the folder as a package: this project's under its own name, another under one made of its path."""
    file = folder / "__init__.py"
    if not file.is_file():
        raise PopulationError(
            f"{folder} has no __init__.py; --population takes a folder with one, such as {DEFAULT}, or the name of one "
            f"of ours: {', '.join(sorted(path.parent.name for path in FOLDERS.glob('*/__init__.py')))}"
        )
    if folder.parent == FOLDERS:
        return importlib.import_module(f"quality.populations.{folder.name}")
    name = "population_" + "".join(letter if letter.isalnum() else "_" for letter in str(folder))
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(name: str) -> Path:
    """Return the folder that ``--population`` names: one of this project's by its name, otherwise a path."""
    own = FOLDERS / name
    return own if (own / "__init__.py").is_file() else Path(name)


def _check(population: Population) -> None:
    skills = {skill for skills in population.skills.values() for skill in skills}
    wrong = [
        *(f"sub-skill {skill} of domain {domain} is not named {domain}/..." for domain, skill in _misnamed(population)),
        *(f"ANSWERS has no domain {domain}" for domain in population.skills if domain not in population.answers),
    ]
    for client in population.clients:
        wrong += [f"client {client.name} has the unknown sub-skill {skill}" for skill in {*client.skills} - skills]
        if client.architecture not in population.architectures:
            wrong.append(f"client {client.name} has the unknown architecture {client.architecture}")
    references = population.references
    for name in (references.central[0], references.central_when_tiny[0], references.anchored[0], references.averaged):
        if name not in population.architectures:
            wrong.append(f"REFERENCES has the unknown architecture {name}")
    names = [client.name for client in population.clients]
    if len(set(names)) < len(names):
        wrong.append("two clients have the same name")
    if len(population.skills) < 2:
        wrong.append("there are fewer than two domains")
    if all(client.taste for client in population.clients):
        wrong.append("no client has the taste of its domains")
    if not any(client.architecture == references.averaged for client in population.clients):
        wrong.append(f"no client has the architecture {references.averaged}, which is averaged")
    if wrong:
        raise PopulationError(f"{population.folder}: {'; '.join(wrong)}; correct its __init__.py")


def _misnamed(population: Population) -> list[tuple[str, str]]:
    return [
        (domain, skill)
        for domain, skills in population.skills.items()
        for skill in skills
        if not skill.startswith(f"{domain}/")
    ]
