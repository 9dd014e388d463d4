"""Command ``mor-reward serve``: a trained model, a Python function, or a reward model that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mor_core import process

from mor_reward.command_values import configure_libraries, named_values


def serve(
    *,
    model: Annotated[Path | None, typer.Option(help="Folder written by 'mor-reward train'.  [MOR_MODEL_DIR]")] = None,
    function: Annotated[str | None, typer.Option(help="Python function, as file.py:name.  [MOR_FUNCTION]")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="Protocol of a reward model that runs elsewhere: openrlhf, classify, score, rerank, predict, kserve, "
            "chat or verify.  [MOR_UPSTREAM]"
        ),
    ] = None,
    upstream_url: Annotated[str | None, typer.Option(help="Its address.  [MOR_UPSTREAM_URL]")] = None,
    upstream_model: Annotated[str | None, typer.Option(help="Its model's name there.  [MOR_UPSTREAM_MODEL]")] = None,
    upstream_key_file: Annotated[
        Path | None, typer.Option(help="File with its bearer token.  [MOR_UPSTREAM_KEY_FILE]")
    ] = None,
    upstream_version: Annotated[
        str | None, typer.Option(help="Version of its model, if it tells none.  [MOR_UPSTREAM_VERSION]")
    ] = None,
    upstream_set: Annotated[
        list[str] | None,
        typer.Option(help="Another setting of its protocol, as name=value.  [all: MOR_UPSTREAM_OPTIONS]"),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Checkpoint with the chat template of its texts.  [MOR_TEMPLATE]")
    ] = None,
    sees_pictures: Annotated[
        bool | None, typer.Option("--sees-pictures", help="Send it pictures.  [MOR_SEES_PICTURES]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [MOR_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 selects a free one.  [MOR_PORT]")] = None,
    tokens_file: Annotated[Path | None, typer.Option(help="Tokens of callers.  [MOR_TOKENS_FILE]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [MOR_THREADS]")] = None,
    port_file: Annotated[Path | None, typer.Option(help="File that gets the address once the service listens.")] = None,
) -> None:
    """Serve a reward model under the contract mor.reward/1. All other settings are MOR_* environment variables."""
    from mor_core import service

    from mor_reward import given_paths
    from mor_reward.config import RewardSettings

    with process.reported_errors("mor-reward"):
        settings = process.load(
            RewardSettings,
            model_dir=model,
            function=function,
            upstream=upstream,
            upstream_url=upstream_url,
            upstream_model=upstream_model,
            upstream_key_file=upstream_key_file,
            upstream_version=upstream_version,
            upstream_options=named_values("--upstream-set", upstream_set) if upstream_set else None,
            template=template,
            sees_pictures=sees_pictures,
            host=host,
            port=port,
            tokens_file=tokens_file,
            threads=threads,
        )
        process.begin(settings, "reward")
        service.check_start(settings, port_file)
        if settings.model_dir is not None:
            given_paths.check_model(settings.model_dir)
        if settings.function is not None:
            given_paths.function_file(settings.function)
        if settings.upstream is not None:  # before PyTorch and transformers, which take seconds to load
            from mor_reward.upstream import UpstreamSettings, check_upstream

            check_upstream(UpstreamSettings.of(settings))
        given_paths.check_checkpoint("--template", settings.template)
        configure_libraries(settings.threads)
        from mor_reward.app import create_app

        service.serve(create_app(settings), settings, port_file=port_file)
