"""Command ``mor-reward audit``: what a router could learn about the training data from a model's scores."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from mor_core import writable
from mor_core.errors import Invalid
from mor_core.printable import visible, visible_json
from mor_core.terminal import print_table
from rich.markup import escape

from mor_reward.audit_record import AUDIT
from mor_reward.command_values import configure_libraries
from mor_reward.console import err, out, printed_errors
from mor_reward.data_options import Columns, Data, MostInvalid, SkipInvalid, show_left_out
from mor_reward.stop_signals import stop_signals

if TYPE_CHECKING:
    from mor_reward.audit.audit_job import AuditFindings

_MOST_SHADOWS = 256
"""Beyond, intervals do not narrow: the pictures are what limits them."""


def audit(
    *,
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder written by 'mor-reward train'; gets audit.json.")],
    shadows: Annotated[
        int,
        typer.Option(
            min=0, max=_MOST_SHADOWS, help="Models trained on random halves for comparison; 0 tries weak attacks only."
        ),
    ] = 16,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint, or reward model, that training started from: folder or hub name."),
    ] = None,
    dp_public: Annotated[
        Path | None, typer.Option(help="Public preferences that scaled the head of a private training.")
    ] = None,
    unseen: Annotated[
        Path | None,
        typer.Option(help="Further preferences of the same kind, about pictures not in --data: narrower intervals."),
    ] = None,
    shown: Annotated[int, typer.Option("--show", min=0, max=1000, help="Pairs most at risk that are named.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of halves, shadow models and intervals.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    most_invalid: MostInvalid = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Attack your own model before you serve it: were pairs and pictures trained on, and were labels memorised?

    Give the same data as in the training. Figures go to audit.json and onto the card; the pairs most at risk are
    printed only."""
    with printed_errors():
        from mor_reward import given_paths

        given_paths.check_data(data)
        given_paths.check_model(model)
        given_paths.check_checkpoint("--base", base)
        for further in (dp_public, unseen):
            if further is not None:
                given_paths.check_data(further)
        writable.check_file(model / AUDIT, "--model")
        if shadows == 1:
            raise Invalid("--shadows 1: each pair needs a shadow with and one without it; give 0, or 2 or more")
        configure_libraries(threads)
        from mor_reward.audit import audit_job
        from mor_reward.progress import shown_progress

        most = most_invalid if skip_invalid else 0.0
        job = audit_job.AuditJob(model, data, shadows, base, dp_public, seed, device, columns, most, unseen)
        left_out: list[str] = []
        with shown_progress(err if as_json else out) as reporter, stop_signals() as stopped:
            findings = audit_job.audit(job, reporter, stopped, left_out)
        show_left_out(left_out)
        if as_json:
            sys.stdout.write(visible_json(json.dumps(_document(findings, shown), indent=2)) + "\n")
        else:
            _print(findings, shown, model)


def _document(findings: AuditFindings, shown: int) -> dict[str, Any]:
    from mor_reward.audit.audit_words import sentences

    return {
        **findings.record.model_dump(mode="json"),
        "name": findings.manifest.name,
        "summary": list(sentences(findings)),
        "at_risk": [asdict(pair) for pair in findings.at_risk[:shown]],
    }


def _print(findings: AuditFindings, shown: int, model: Path) -> None:
    from mor_reward.audit.audit_words import sentences

    rows = [
        (
            one.unit,
            one.attack,
            f"{one.auc:.3f}",
            "{:.3f} to {:.3f}".format(*one.auc_interval),
            f"{one.true_positives:.1%}",
            str(one.members),
            str(one.non_members),
        )
        for one in findings.record.attacks
    ]
    columns = ("unit", "attack", "AUC", "95 % interval", "found at 1 % false", "trained on", "not trained on")
    print_table(out, columns, rows)
    for sentence in sentences(findings):
        out.print(sentence, highlight=False, soft_wrap=True)
    if findings.at_risk[:shown]:
        out.print("pairs most at risk, which only you see:", highlight=False)
        risks = [
            (str(pair.row), escape(visible(pair.id)), f"{pair.above:.0%} of other pairs")
            for pair in findings.at_risk[:shown]
        ]
        print_table(out, ("row", "id", "more like a trained pair than"), risks)
    version = findings.manifest.version
    out.print(f"version {version} in {model / AUDIT}; 'mor-reward serve' shows its figures on the card", soft_wrap=True)
