"""No message of a library's exception leaves a handler as it is: it may quote a prompt, a token or a path.

``describe_failure`` and ``quote_failure`` are the only ways to its text. The text of MoR's own errors, and of a few
types whose messages quote nothing, may be used as it is.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import MODULES, ROOT


def own_exceptions() -> set[str]:
    """Return MoR's own exceptions: the classes that derive from one of Python's, or from another one of MoR's."""
    classes = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    known = {name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)}
    while more := {name for name, bases in classes.items() if bases & known} - known:
        known |= more
    return known & set(classes)


OWN = own_exceptions()
QUOTE_NOTHING = {"binascii.Error", "json.JSONDecodeError", "StreamError", "socket.gaierror"}
"""Types of libraries whose messages name a place or a flaw."""
ALLOWED = {
    # From functions of paths, whose messages name neither.
    ("mor_core/datafiles/picture_cells.py", "OSError"),
    ("mor_core/datafiles/picture_cells.py", "RuntimeError"),
    ("mor_core/datafiles/picture_cells.py", "ValueError"),
    # To compare it, or take the name of a field out of it.
    ("mor_core/images.py", "ValueError"),
    ("mor_core/stream_consumer.py", "ResponseError"),
    ("mor_core/process.py", "SettingsError"),
    ("mor_router/objectives/gates.py", "ResponseError"),
    # The loader names the library that is missing, at the start.
    ("mor_rollout/engines/vllm/native_libraries.py", "OSError"),
}
"""Handlers of further types that may use the text, by file and type."""


def handlers(path: Path) -> Iterator[tuple[ast.ExceptHandler, set[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None:
            parts = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            yield node, {ast.unparse(part) for part in parts}


def uses_of_the_text(handler: ast.ExceptHandler) -> list[int]:
    """Return the lines where the handler makes text of the exception itself."""
    found = []
    for node in ast.walk(handler):
        inner: list[ast.expr] = []
        if isinstance(node, ast.FormattedValue):
            inner = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("str", "repr", "ascii", "format"):
            inner = list(node.args)
        if any(isinstance(part, ast.Name) and part.id == handler.name for part in inner):
            found.append(node.lineno)
    return found


def test_the_text_of_a_librarys_exception_goes_through_describe_failure() -> None:
    problems = []
    for path in MODULES:
        name = "/".join(path.relative_to(ROOT).parts[2:])
        for handler, kinds in handlers(path):
            foreign = {kind for kind in kinds - QUOTE_NOTHING if kind.split(".")[-1] not in OWN - set(dir(builtins))}
            foreign = {kind for kind in foreign if (name, kind) not in ALLOWED}
            if foreign and (lines := uses_of_the_text(handler)):
                problems.append(f"{name}:{lines}: {', '.join(sorted(foreign))}")
    assert not problems, "use describe_failure (or quote_failure where no data is in reach):\n" + "\n".join(problems)
