"""Measurement of the overlap of sampler and trainer: seconds per step of each alone, and of the loop.

``python bench/overlap.py`` writes ``bench/results/overlap-SHAPE.json``. Rollout service and training process have a
core each; the others (queue server, router, client, run control) run on both. *Sampler alone*: the service processes a
step's groups and a new version in each step, without training. *Trainer alone*: groups of the same sizes are available
at once; a step is an update and the publication of its version. *Overlapped*: the loop with ``max_staleness`` 1.
Overlap is perfect if its step takes as long as the slower of the two alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import vlm
from cluster import Services
from loop import rollout_settings
from machine import end_children_on_sigterm, record
from mor_core.runs import RunSpec

_SAMPLER, _TRAINER = 0, 1
"""Cores of sampler and trainer."""
_SKIPPED = 2
"""Steps of warm-up, which are not measured."""
_TIMEOUT_S = 3000.0
"""Longest measurement of one side, seconds."""


def spec_of(options: argparse.Namespace, folder: Path) -> RunSpec:
    steps = options.steps + _SKIPPED + 1
    prompts = vlm.write_prompts(folder / "prompts", vlm.SHAPES[options.shape], options.prompt, options.groups * steps)
    return vlm.spec_of(
        model=options.model,
        prompts=str(prompts),
        steps=steps,
        groups_per_step=options.groups,
        group_size=options.size,
        sampling={"max_tokens": options.response},
        max_staleness=1,
        checkpoint_every=1_000_000,
    )


def services_of(options: argparse.Namespace, folder: Path) -> Services:
    shutil.rmtree(folder, ignore_errors=True)
    return Services(folder, Path(options.model), pinned={"rollout": _SAMPLER, "worker": _TRAINER})


def overlapped(options: argparse.Namespace) -> tuple[list[float], dict[str, float]]:
    """Measure the seconds of each step of the loop, and the median of each share."""
    with services_of(options, options.state / "overlapped") as services:
        services.queue()
        services.scoring()
        services.serve("control", "mor-trainer", "serve")
        services.serve("rollout", "mor-rollout", "serve", **rollout_settings(options, 1, 1))
        services.work()
        spec = spec_of(options, services.folder)
        points = services.train(spec.model_dump(mode="json"), _TIMEOUT_S)
    pairs = list(itertools.pairwise(points))[_SKIPPED:]
    shares = {name: statistics.median(point["seconds"][name] for point, _ in pairs) for name in points[0]["seconds"]}
    return [after["begun_at"] - before["begun_at"] for before, after in pairs], shares


def sampler(options: argparse.Namespace) -> list[float]:
    """Measure the seconds between the last groups of consecutive steps, with two steps' groups in flight."""
    with services_of(options, options.state / "sampler") as services:
        services.queue()
        services.serve("control", "mor-trainer", "serve")
        services.serve("rollout", "mor-rollout", "serve", **rollout_settings(options, 1, 1))
        spec = spec_of(options, services.folder)
        run = services.create(spec.model_dump(mode="json"))
        publish_all(options, spec, services.folder / "runs" / run, run)
        return asyncio.run(issue_and_take(options, spec, services, run))


def publish_all(options: argparse.Namespace, spec: RunSpec, folder: Path, run: str) -> None:
    """Publish a version for each step in advance, so that publication does not disturb the measurement."""
    from mor_trainer.model import loading
    from mor_trainer.model.policy import Policy
    from mor_trainer.weights import version_writer

    policy = Policy(*loading.load(options.model), spec)
    for version in range(spec.steps):
        version_writer.write_version(
            folder, run, version, options.model, model=policy.model, adapter=None, trainable=policy.trainable,
            keep=spec.steps,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in policy.trainable.values():
                parameter.add_(1e-4)


async def issue_and_take(options: argparse.Namespace, spec: RunSpec, services: Services, run: str) -> list[float]:
    from mor_core.blobs import Blobs
    from mor_core.datafiles import read_prompts
    from mor_core.run_announcements import announce
    from mor_core.settings import StreamSettings
    from mor_core.stream_consumer import Consumer
    from mor_core.streams import Streams, connect
    from mor_core.wire import PromptRecord, RolloutRecord, Sampling, WeightsRef
    from pydantic import SecretStr

    prompts = read_prompts(Path(spec.prompts))
    redis = connect(StreamSettings(redis_url=SecretStr(services.redis_url)))
    streams, blobs = Streams(redis, run, 1024), Blobs(redis, run)

    async def announced() -> None:
        while True:
            await announce(redis, run, options.model)
            await asyncio.sleep(5)

    async def issue(step: int) -> None:
        for number in range(step * options.groups, (step + 1) * options.groups):
            prompt, group = prompts[number], f"{number:032x}"
            for content in prompt.images.values():
                await blobs.put(content, group)
            record = PromptRecord(
                run=run, group_id=group, prompt_id=prompt.id, messages=prompt.messages,
                sampling=Sampling(group_size=options.size, max_tokens=options.response),
                weights=WeightsRef(version=step),
            )  # fmt: skip
            await streams.publish("prompts", record, timeout_s=60)

    consumer: Consumer[RolloutRecord] = Consumer(streams, "rollouts", "router", 600)
    announcing = asyncio.create_task(announced())
    ends, taken = [], 0
    await issue(0)
    await issue(1)
    async with asyncio.timeout(_TIMEOUT_S):
        for step in range(2, spec.steps + 1):
            while taken < (step - 1) * options.groups:
                for entry in await consumer.read(options.groups, 0.5):
                    await consumer.settle(entry)
                    taken += 1
            ends.append(time.perf_counter())
            if step < spec.steps:
                await issue(step)
    announcing.cancel()
    await redis.aclose()
    return [after - before for before, after in itertools.pairwise(ends)][_SKIPPED - 1 :]


def trainer(options: argparse.Namespace) -> list[float]:
    """Measure the seconds of each step of a training process that never waits, in its own process."""
    command = [sys.executable, __file__, "--trainer"]
    for name in ("shape", "prompt", "size", "response", "groups", "steps", "state", "model"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=_TIMEOUT_S, env=environment)
    return list(json.loads(done.stdout.splitlines()[-1]))


def train_alone(options: argparse.Namespace) -> list[float]:
    from mor_trainer.model import loading
    from mor_trainer.model.policy import Policy
    from mor_trainer.update.step_timer import StepTimer
    from mor_trainer.update.updater import Updater
    from mor_trainer.weights import version_writer
    from mor_trainer.weights.background_publication import BackgroundPublication

    folder = options.state / "trainer"
    shutil.rmtree(folder, ignore_errors=True)
    spec = spec_of(options, folder)
    policy = Policy(*loading.load(options.model), spec)
    updater = Updater(policy, spec)

    def publish(version: int, trainable: Mapping[str, torch.Tensor]) -> None:
        version_writer.write_version(
            folder, "run", version, options.model, model=policy.model, adapter=None, trainable=trainable, keep=4
        )

    publication = BackgroundPublication(publish, timeout_s=_TIMEOUT_S)
    updater.optimiser.register_step_pre_hook(lambda *_: publication.finish())
    begun = [time.perf_counter()]
    for step in range(spec.steps):
        groups = vlm.groups(
            policy, vlm.SHAPES[options.shape], prompt=options.prompt, size=options.size, response=options.response,
            count=options.groups, first=step * options.groups,
        )  # fmt: skip
        updater.step(groups, step + 1, StepTimer())
        publication.begin(step, policy.trainable)
        begun.append(time.perf_counter())
    publication.finish()
    return [after - before for before, after in itertools.pairwise(begun)][_SKIPPED:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(vlm.SHAPES), default="smollm2-10-layers")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--size", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--response", type=int, default=32, help="tokens of a response")
    parser.add_argument("--groups", type=int, default=4, help="prompts in a step")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each measurement")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/overlap"), help="model and runs")
    parser.add_argument("--trainer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    end_children_on_sigterm()
    if options.trainer:
        os.sched_setaffinity(0, {_TRAINER})
        torch.set_num_threads(1)
        print("\n" + json.dumps(train_alone(options)))
        return
    options.state = options.state.resolve()
    options.model = str(options.state / options.shape)
    vlm.save(vlm.SHAPES[options.shape], options.model)
    os.sched_setaffinity(0, {_SAMPLER, _TRAINER})
    steps = {"sampler": sampler(options), "trainer": trainer(options)}
    steps["overlapped"], shares = overlapped(options)
    seconds = {name: statistics.median(found) for name, found in steps.items()}
    slower = max(seconds["sampler"], seconds["trainer"])
    print(seconds, f"{seconds['overlapped'] / slower:.2f} of the slower", flush=True)
    kept = ("shape", "prompt", "size", "response", "groups", "steps")
    record(
        f"overlap-{options.shape}",
        {
            **{key: getattr(options, key) for key in kept},
            "clock": "wall",
            "threads": 1,
            "seconds": seconds,
            "of_the_slower": seconds["overlapped"] / slower,
            "all_seconds": steps,
            "shares": shares,
        },
    )


if __name__ == "__main__":
    main()
