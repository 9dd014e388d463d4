"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import typer
from mor_client.cli import app
from mor_client.exits import Exit
from mor_trainer.routes import ROUTERS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "examples").glob("*/*.md")),
    *sorted((ROOT / "helm").glob("*/*.md")),
]


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for file, page in generate.PAGES.items():
        assert file.read_text() == page(), f"{file.name} is out of date; run `python docs/generate.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_make_targets_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, f"{page.name} names `make {target}`, which is no target"


def test_every_command_and_exit_status_is_documented() -> None:
    text = (ROOT / "docs" / "command.md").read_text()
    root = typer.main.get_command(app)
    commands = [
        f"mor {group} {name}"
        for group, members in root.commands.items()  # type: ignore[attr-defined]
        for name in getattr(members, "commands", {"": members})
    ]
    assert len(commands) > 20
    for command in commands:
        assert f"`{command.strip()}" in text, f"docs/command.md does not name `{command}`"
    for status in Exit:
        assert f"| {status.value} |" in text, f"docs/command.md does not have status {status.value}"


def test_every_route_for_people_is_documented() -> None:
    text = (ROOT / "docs" / "status.md").read_text()
    for router in ROUTERS:
        for route in router.routes:
            if "workers" not in route.tags and not route.path.startswith("/v1/runs/{run}/weights"):
                assert f"{route.path}`" in text or f"{route.path}?" in text, (
                    f"docs/status.md does not name {route.path}"
                )


def test_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    for target in phony.group(1).split():
        assert f"make {target} " in listed, f"`make help` does not list {target}"
