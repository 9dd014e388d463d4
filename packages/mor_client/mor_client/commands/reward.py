"""``mor reward``: score groups of responses in a file with the mixture."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from mor_core.errors import Invalid

from mor_client.commands.common import Json, session
from mor_client.exit_codes import ExitCode
from mor_client.output import err, print_json, print_table, waiting
from mor_client.rewards import GroupResult
from mor_client.rewards.group_file import read_groups

_GROUPS_HELD = 256
"""Groups in memory at a time: their pictures are the large part."""


def reward(
    *,
    data: Annotated[
        Path, typer.Argument(metavar="FILE", help="Groups: rows with the columns prompt, responses and images.")
    ],
    objective: Annotated[
        str | None, typer.Option(help="Objective of rows that name none: a name, NAME@VERSION, or a text.")
    ] = None,
    columns: Annotated[str, typer.Option("--map", help="Other column names, as prompt=question,images=image.")] = "",
    deadline: Annotated[
        float | None,
        typer.Option(min=0.1, max=600, help="Seconds that clients have to score; by default the router's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score groups of responses with the mixture, and print the rewards in logits.

    The exit status is 1 if a group has no reward. A missing reward is never 0."""
    with session(as_json) as mor:
        found: list[GroupResult] = []
        with waiting(f"scoring {data}"):
            rows = read_groups(data, columns)
            while groups := list(islice(rows, _GROUPS_HELD)):
                found += mor.rewards.score(groups, objective=objective, deadline_s=deadline)
        if not found:
            raise Invalid(f"{data}: no rows; add groups to it")
        if as_json:
            print_json([result.model_dump(mode="json", exclude={"clients"}) for result in found])
        else:
            print_table(
                ("group", "rewards", "reason"),
                [(one.item_id, _shown(one), one.detail if one.rewards is None else one.note) for one in found],
                empty="",
            )
    if missing := sum(result.rewards is None for result in found):
        if not as_json:
            err.print(f"{missing} of {len(found)} groups have no reward", highlight=False)
        raise typer.Exit(ExitCode.refused)


def _shown(result: GroupResult) -> str | None:
    return None if result.rewards is None else "  ".join(f"{value:+.3f}" for value in result.rewards)
