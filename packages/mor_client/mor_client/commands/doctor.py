"""``mor doctor``: diagnose an installation."""

from __future__ import annotations

import typer

from mor_client import __version__
from mor_client.commands.common import Json, session
from mor_client.doctor import diagnose, healthy
from mor_client.exit_codes import ExitCode
from mor_client.findings import Verdict
from mor_client.output import STATE_STYLES, cell, out, print_json

_MARKS = {Verdict.ok: "✓", Verdict.warning: "!", Verdict.failed: "✗", Verdict.skipped: "-"}


def doctor(*, as_json: Json = False) -> None:
    """Check services, queue server, versions, clocks, tokens, disks, devices, workers, clients and alerts.

    The exit status is 1 if a check failed; warnings do not count."""
    findings = []
    with session(as_json) as mor:
        for finding in diagnose(mor, __version__):
            findings.append(finding)
            if not as_json:
                style = STATE_STYLES.get(finding.verdict, "dim")
                out.print(
                    f"[{style}]{_MARKS[finding.verdict]}[/] [bold]{cell(finding.check)}[/]: {cell(finding.detail)}",
                    markup=True,
                    highlight=False,
                    soft_wrap=True,
                )
                if finding.cure is not None:
                    out.print(f"    [{style}]→[/] {cell(finding.cure)}", markup=True, highlight=False, soft_wrap=True)
    if as_json:
        print_json({"healthy": healthy(findings), "findings": [f.model_dump(mode="json") for f in findings]})
    if not healthy(findings):
        raise typer.Exit(ExitCode.refused)
