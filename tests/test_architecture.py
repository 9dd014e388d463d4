"""Imports go in one direction, and mathematics does nothing else."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = ("mor_reward", "mor_router", "mor_rollout", "mor_trainer")
PACKAGES = {
    path.name: path for path in [*ROOT.glob("services/*/mor_*"), *ROOT.glob("packages/*/mor_*")] if path.is_dir()
}
ALLOWED = {
    "mor_core": set(),
    "mor_client": {"mor_core"},
    **{service: {"mor_core"} for service in SERVICES},
}
PURE = {"mathematics", "algorithm"}
IMPURE_IMPORTS = {
    "asyncio", "httpx", "redis", "fastapi", "logging", "structlog", "prometheus_client", "pathlib", "os", "time",
    "torch.distributed",
}  # fmt: skip
MODULES = sorted(path for package in PACKAGES.values() for path in package.rglob("*.py"))


def imports(path: Path, *, when_loaded: bool = False) -> set[str]:
    """Return the names that a module imports: all of them, or only those at its top level."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_service_imports_the_core_and_itself_only(package: str) -> None:
    ours = set(ALLOWED) - {package} - ALLOWED[package]
    for path in PACKAGES[package].rglob("*.py"):
        foreign = {name.split(".")[0] for name in imports(path)} & ours
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}; only {ALLOWED[package]} is allowed"


def rooms(package: str) -> dict[str, set[str]]:
    """Return the rooms that each room of a package imports. A room is a folder, or a module at the package's root."""
    base = PACKAGES[package]
    room_of: dict[str, str] = {}
    for path in base.rglob("*.py"):
        parts = path.relative_to(base).with_suffix("").parts
        folder = parts[:-1] if len(parts) > 1 else parts
        room_of[".".join((package, *parts)).removesuffix(".__init__")] = "/".join(folder)
    graph: dict[str, set[str]] = {}
    for path in base.rglob("*.py"):
        parts = path.relative_to(base).with_suffix("").parts
        here = room_of[".".join((package, *parts)).removesuffix(".__init__")]
        graph.setdefault(here, set()).update(
            {room_of[name] for name in imports(path) & set(room_of)} - {here, "__init__"}
        )
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_one_that_imports_it_back(package: str) -> None:
    try:
        graphlib.TopologicalSorter(rooms(package)).prepare()
    except graphlib.CycleError as error:
        pytest.fail("rooms import each other in a circle: " + " -> ".join(reversed(error.args[1])))


def test_the_core_needs_neither_torch_nor_redis() -> None:
    for path in PACKAGES["mor_core"].rglob("*.py"):
        heavy = {name.split(".")[0] for name in imports(path, when_loaded=True)} & {
            "torch",
            "transformers",
            "redis",
            "vllm",
        }
        allowed = (
            {"redis"}
            if path.stem
            in (
                "bounded_reads",
                "bounded_replies",
                "closed_transports",
                "streams",
                "stream_consumer",
                "endless_keys",
                "stale_leases",
                "stored",
                "stored_counters",
                "blobs",
                "entry_leases",
                "run_stage",
                "stage",
                "redis_users",
                "redis_client",
                "redis_cluster",
                "redis_permissions",
                "redis_pool",
                "run_announcements",
                "outage_waits",
            )
            else set()
        )
        assert heavy <= allowed, f"{path.relative_to(ROOT)} imports {heavy - allowed}"


def test_the_command_loads_no_queue_client_no_model_and_no_database() -> None:
    script = "import sys, mor_client.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert not set(loaded.stdout.split()) & {"redis", "torch", "transformers", "vllm", "sqlite3"}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if PURE & {p.stem, *p.parts}], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_mathematics_does_nothing_else(path: Path) -> None:
    impure = {name for name in imports(path) if name in IMPURE_IMPORTS or name.split(".")[0] in IMPURE_IMPORTS}
    assert not impure, f"{path.relative_to(ROOT)} is pure mathematics and imports {impure}"


def structure() -> dict[str, list[str]]:
    """Return the rooms that docs/contributing.md lists for each package, from left to right, level by level."""
    block = (ROOT / "docs" / "contributing.md").read_text().partition("```\n")[2].partition("\n```")[0]
    lines = [line.split(maxsplit=1) for line in block.replace("\n            →", " →").splitlines()]
    return {f"mor_{package}": listed.split(" → ") for package, listed in lines}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_documented_structure_is_that_of_the_imports(package: str) -> None:
    level_of = {room: level for level, rooms in enumerate(structure()[package]) for room in rooms.split(", ")}

    def level(room: str) -> int | None:
        return level_of.get(room, level_of.get(room.split("/", 1)[0]))

    folders = {path.parent.relative_to(PACKAGES[package]).parts[0] for path in PACKAGES[package].glob("*/*.py")}
    assert not {room for room in folders if level(room) is None}, "list each folder in docs/contributing.md"
    for room, imported in rooms(package).items():
        wrong = {
            other
            for other in imported
            if other.split("/", 1)[0] != room.split("/", 1)[0] and (left := level(room)) is not None
            if (right := level(other)) is not None and right <= left
        }
        assert not wrong, f"{room} imports {wrong}, which docs/contributing.md does not list to the right of it"
