"""The charts' jobs that generate, rotate and retire secrets: ``python -m mor_core.secrets_job settle|rotate|retire``.

``MOR_WANTED_SECRETS`` says what the release needs, and ``MOR_SECRETS`` what to rotate or retire: keys of the Secrets,
separated by commas, or ``all``. The log names keys, never values.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from mor_core.cluster_secrets import ClusterSecrets, Data, connect_in_cluster
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.generated_secrets import ALL, GeneratedSecret, WantedSecret, check_names
from mor_core.process import reported_errors
from mor_core.uncaught import guard_uncaught

_PROGRAM = "secrets"


def run(cluster: ClusterSecrets, action: str, wanted: Sequence[WantedSecret], names: Sequence[str]) -> list[str]:
    """Bring the Secrets to what is wanted, then rotate or retire what is named; return a line for each change.

    Raises:
        Invalid: a name is unknown, a Secret cannot be read, or the API server refuses.
        Unavailable: the API server cannot be reached.
    """
    check_names(wanted, names)
    lines = []
    for each in wanted:
        notes: list[str] = []

        def change(data: Data, each: WantedSecret = each, notes: list[str] = notes) -> Data:
            secret = GeneratedSecret(each, data)
            if action == "rotate":
                secret.rotate(names)
            elif action == "retire":
                secret.retire(names)
            notes[:] = secret.notes
            return secret.data

        changed = cluster.change(each.secret, change)
        lines += [f"{each.secret}: {note}" for note in notes] if changed else [f"{each.secret}: nothing to change"]
    return lines


def main() -> None:
    guard_uncaught()
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="Generate, rotate or retire a release's secrets.")
    parser.add_argument("action", choices=("settle", "rotate", "retire"))
    action = parser.parse_args().action
    with reported_errors(_PROGRAM):
        names = [name.strip() for name in os.environ.get("MOR_SECRETS", ALL).split(",") if name.strip()]
        for line in run(connect_in_cluster(), action, _wanted(), names):
            sys.stdout.write(f"{line}\n")


def _wanted() -> list[WantedSecret]:
    try:
        return TypeAdapter(list[WantedSecret]).validate_json(os.environ.get("MOR_WANTED_SECRETS", ""), extra="ignore")
    except ValidationError as error:
        raise Invalid(f"MOR_WANTED_SECRETS: {describe(error)}") from None


if __name__ == "__main__":
    main()
