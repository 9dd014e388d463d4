"""Public names are made of plain words: a term of docs/glossary.md or a word of tests/plain_words.txt."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import MODULES, ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
PLAIN_WORDS = ROOT / "tests" / "plain_words.txt"
_CAMEL = re.compile(r"MLflow|LoRA|vLLM|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")


def terms() -> list[str]:
    """Terms of the glossary in its order; one line may define several."""
    lines = re.findall(r"^- \*\*(.+?)\*\*: \S", GLOSSARY.read_text(), re.MULTILINE)
    return [term.strip() for line in lines for term in line.split(",")]


def known_words() -> set[str]:
    listed = [line for line in PLAIN_WORDS.read_text().splitlines() if line and not line.startswith("#")]
    return {*listed, *(word.lower() for term in terms() for word in re.findall(r"[^\W_]+", term))}


def words_of(name: str) -> list[str]:
    """Words of a CamelCase class name or of a snake_case metric name."""
    parts = name.split("_") if "_" in name else _CAMEL.findall(name)
    return [part.lower() for part in parts if part]


def invented(name: str, known: set[str]) -> list[str]:
    """Words of a name that are neither plain nor in the glossary; a plural counts as its singular."""
    return [word for word in words_of(name) if not _singulars(word) & known]


def _singulars(word: str) -> set[str]:
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


def public_classes() -> Iterator[tuple[str, Path]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, path


def metrics() -> list[str]:
    spec = importlib.util.spec_from_file_location("metrics_page", ROOT / "docs" / "generators" / "metrics.py")
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return list(page.names())


def _complaint(found: dict[str, list[str]]) -> str:
    lines = [f"  {word}: {', '.join(sorted(set(names))[:4])}" for word, names in sorted(found.items())]
    return (
        "words that are neither plain nor defined; use a standard term or add it to docs/glossary.md "
        "(a plain English word or a word of the field: to tests/plain_words.txt):\n" + "\n".join(lines)
    )


def test_classes_are_named_with_words_that_a_reader_knows() -> None:
    known, found = known_words(), dict[str, list[str]]()
    for name, path in public_classes():
        for word in invented(name, known):
            found.setdefault(word, []).append(f"{name} in {path.relative_to(ROOT)}")
    assert not found, _complaint(found)


def test_metrics_are_named_with_words_that_a_reader_knows() -> None:
    known, found = known_words(), dict[str, list[str]]()
    for name in metrics():
        for word in invented(name, known):
            found.setdefault(word, []).append(name)
    assert not found, _complaint(found)


@pytest.mark.parametrize(("name", "words"), [("Teller", ["teller"]), ("ClientLens", ["lens"]), ("RunLease", [])])
def test_an_invented_word_is_found(name: str, words: list[str]) -> None:
    assert invented(name, known_words()) == words


def test_the_glossary_defines_each_term_once_in_one_line() -> None:
    lines = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("- ")]
    assert all(re.match(r"- \*\*.+?\*\*: .*[.)]$", line) for line in lines)
    repeated = {term for term in terms() if terms().count(term) > 1}
    assert not repeated
