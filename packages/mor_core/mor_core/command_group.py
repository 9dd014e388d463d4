"""Groups of commands: every mistake of a user ends with a sentence, and ``--json`` may stand in any place.

The commands report the errors that they expect themselves. This is the last boundary: what it catches would be a
traceback (extra ``terminal``).
"""

from __future__ import annotations

import errno
import json
import sys
from itertools import takewhile
from typing import Any

import typer
from typer.core import TyperGroup

from mor_core.errors import Invalid, MorError
from mor_core.hidden_secrets import hide_secrets
from mor_core.printable import visible, visible_json

JSON_OPTION = "--json"
_USAGE = 2
"""Exit status of an error that no command expects: a file, an address or a setting is wrong."""
_WRONG_USAGE: Any = typer.BadParameter.__mro__[2]
"""Base of click's errors of usage, which typer does not export."""
_CURES = {
    errno.EACCES: "give a path that you may use, or have its owner change its mode",
    errno.EPERM: "give a path that you may use, or have its owner change its mode",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENOENT: "give a path that exists",
    errno.ENOTDIR: "give a path whose parents are folders",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOSPC: "make room on that disk, or give a path on another one",
    errno.EDQUOT: "make room in your quota, or give a path on another disk",
}


class CommandGroup(TyperGroup):
    """Group of commands of one program, or the program itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move ``--json`` from before a command's name to after it."""
        before = list(takewhile(lambda word: word != "--" and word not in self.commands, args))
        if JSON_OPTION in before and len(before) < len(args):
            name, *rest = args[len(before) :]
            args = [*(word for word in before if word != JSON_OPTION), name, JSON_OPTION, *rest]
        if JSON_OPTION in takewhile(lambda word: word != "--", args):
            ctx.meta[JSON_OPTION] = True
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        as_json = JSON_OPTION in ctx.meta
        try:
            return super().invoke(ctx)
        except MorError as error:
            shown, title = str(error), error.title
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has enough, as 'head' has
                raise
            shown, title = path_error(error), Invalid.title
        except _WRONG_USAGE as error:
            if not as_json:
                raise
            shown, title = error.format_message(), "Wrong usage"
        shown = visible(hide_secrets(shown))
        if as_json:
            document = json.dumps({"error": {"title": title, "detail": shown}})
            sys.stderr.write(visible_json(document) + "\n")
        else:
            sys.stderr.write(f"error: {shown}\n")
        raise typer.Exit(_USAGE)


def path_error(error: OSError) -> str:
    """Return the message of a failed use of a file or a folder: the path, the reason, what to do."""
    cure = _CURES.get(error.errno or 0, "check the path and the disk that it is on")
    if error.filename is None:
        return f"{error.strerror or error}; {cure}"
    return f"{error.filename}: {error.strerror}; {cure}"
