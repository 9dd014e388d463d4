"""Command ``mor-reward adopt``: serve a reward model that exists, without training it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mor_reward.calibration_table import show_calibration
from mor_reward.command_values import card_name, configure_libraries
from mor_reward.console import err, printed_errors
from mor_reward.data_options import Columns, MostInvalid, SkipInvalid, show_left_out


def adopt(
    *,
    checkpoint: Annotated[str, typer.Argument(help="Sequence classifier, its PEFT adapter, or VLM with a value head.")],
    folder: Annotated[Path, typer.Option("--out", help="Output folder; written whole at the end.")],
    data: Annotated[
        Path | None, typer.Option(help="Preferences that calibrate it; without, the card says that it is not.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Checkpoint that an adapter belongs to; by default the one it names.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Index of the score's logit, of a head with several.")] = None,
    head: Annotated[str | None, typer.Option(help="Tensor of a VLM's value head, where several could be it.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Maximum tokens of an input; by default the model's, at most 4096.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    name: Annotated[str | None, typer.Option(help="Name on the card; by default the folder's name.")] = None,
    domains: Annotated[str, typer.Option(help="Topics that the model can judge, as free text for the card.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    most_invalid: MostInvalid = 0.1,
) -> None:
    """Make an existing reward model a served one, without training; print how it agrees with --data."""
    with printed_errors():
        from mor_reward import given_paths

        if data is not None:
            given_paths.check_data(data)
        given_paths.check_output(folder, overwrite=overwrite)
        given_paths.check_checkpoint("CHECKPOINT", checkpoint)
        given_paths.check_checkpoint("--base", base)
        configure_libraries(threads)
        from mor_reward.adoption import AdoptionJob, adopt

        left_out: list[str] = []
        job = AdoptionJob(
            checkpoint=checkpoint,
            out=folder,
            name=card_name(name, folder),
            domains=domains,
            data=data,
            base=base,
            label=label,
            head=head,
            max_length=max_length,
            device=device,
            columns=columns,
            most_invalid=most_invalid if skip_invalid else 0.0,
            overwrite=overwrite,
        )
        manifest = adopt(job, left_out)
        show_left_out(left_out)
        show_calibration(manifest.name, manifest.calibration, f"version {manifest.version} in {folder}")
        if manifest.calibration is None:
            err.print(
                "not calibrated: its scores are its own logits; give preferences with --data, so that the card has "
                "their accuracy",
                highlight=False,
                soft_wrap=True,
            )
