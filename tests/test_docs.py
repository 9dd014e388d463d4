"""Documentation and code agree."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import mor_client.cli
import mor_reward.cli
import mor_rollout.cli
import mor_router.cli
import mor_trainer.cli
import pytest
import typer
import yaml
from mor_client.exit_codes import ExitCode
from mor_core.run_alerts import AlertName
from mor_core.settings import PREFIX, Settings
from mor_trainer.routes import ROUTERS

from tests.test_architecture import MODULES, imports

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
    for link, section in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        linked = page.parent / link if link else page
        assert linked.exists(), f"{page.name} links to {link}, which is not there"
        if section:
            assert section in _sections(linked), f"{page.name} links to section {section} of {linked.name}, not there"
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, f"{page.name} names `make {target}`, which is no target"


def _sections(page: Path) -> set[str]:
    """Return the anchors of a page's headings in the form of GitHub and GitLab."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one)).lower().replace(" ", "-") for one in titles
    }


def test_pages_that_code_and_charts_name_exist() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if (
            file.suffix in {".py", ".sh", ".md", ".yaml", ".yml", ".json", ".tpl", ".txt", ".toml", ""}
            and file.is_file()
        ):
            text = file.read_text(errors="ignore")
            for page in re.findall(r"(?<![\w/.-])docs/([\w-]+\.md)", text):
                assert (ROOT / "docs" / page).exists(), f"{name} names docs/{page}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"`((?:services|packages|bench|tests|helm|examples|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which is not there"
    for path in re.findall(r"`(mor_\w+/[\w./-]+)`", page.read_text()):
        assert [*ROOT.glob(f"*/*/{path}")], f"{page.name} names {path}, which is not there"


def test_each_line_on_security_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    for section in ("## Trust boundaries", "## Roles"):
        rows = [line for line in text.partition(section)[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
        for row in rows[2:]:
            assert re.search(r"`tests/[\w/]+\.py::test_\w+` \|$", row), f"docs/security.md names no test: {row}"
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text):
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"


def _settings(base: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for found in base.__subclasses__():
        yield found
        yield from _settings(found)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    ours = [found for found in _settings() if found.__module__.startswith("mor_")]
    assert {found.__module__.split(".")[0] for found in ours} >= {
        "mor_client", "mor_reward", "mor_rollout", "mor_router", "mor_trainer",
    }  # fmt: skip
    for found in ours:
        for name in found.model_fields:
            variable = f"{PREFIX}{name.upper()}"
            assert f"| `{variable}` |" in text, f"{variable} of {found.__module__} is not in docs/settings.md"


def test_every_metric_is_registered_in_a_documented_module() -> None:
    """docs/metrics.md is generated from these modules; a metric of another module would be missing there."""
    looked_at = {
        f"{service}/metrics.py" for service in ("mor_core", "mor_reward", "mor_router", "mor_rollout", "mor_trainer")
    }
    looked_at |= {"mor_core/stored.py", "mor_core/server_clock.py"}
    for path in MODULES:
        if {f"prometheus_client.{kind}" for kind in ("Counter", "Gauge", "Histogram", "Summary")} & imports(path):
            assert f"{path.parent.name}/{path.name}" in looked_at, f"{path} makes metrics"


def test_every_alert_is_documented() -> None:
    [group] = yaml.safe_load((ROOT / "helm" / "mor" / "files" / "rules.yaml").read_text())["groups"]
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in group["rules"]]
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"@RUNBOOKS@#{rule['alert'].lower()}"
    status = (ROOT / "docs" / "status.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", status.partition("## Alerts")[2], re.MULTILINE)) == {*get_args(AlertName)}


@pytest.mark.parametrize("service", [mor_reward.cli, mor_router.cli, mor_rollout.cli, mor_trainer.cli])
def test_every_command_of_a_service_is_documented(service: ModuleType) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    program = service.__name__.partition(".")[0].replace("_", "-")
    root = typer.main.get_command(service.app)
    for command in root.commands:  # type: ignore[attr-defined]
        assert f"{program} {command}" in text, f"no page documents `{program} {command}`"


def test_every_command_and_exit_status_is_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    root = typer.main.get_command(mor_client.cli.app)
    commands = [
        f"mor {group} {name}"
        for group, members in root.commands.items()  # type: ignore[attr-defined]
        for name in getattr(members, "commands", {"": members})
    ]
    assert len(commands) > 20
    for command in commands:
        assert f"`{command.strip()}" in text, f"docs/command-line.md does not name `{command}`"
    for status in ExitCode:
        assert f"| {status.value} |" in text, f"docs/command-line.md does not have status {status.value}"


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
