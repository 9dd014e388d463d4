"""Measurement of a weight swap, from the trainer's memory to an engine that verifiably computes with the new version.

``python bench/swap.py`` writes ``bench/results/swap.json``: for each shape, full weights and a LoRA adapter, the
seconds of each stage. *Published*: files written and hashed. *Pulled*: files over HTTP from run control, hashed by file
and by tensor. *Swapped*: loaded by the vLLM engine in place, caches emptied, and read back from it. For comparison, the
time of this machine for as many bytes: written to the same disk, sent over loopback, hashed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import socket
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
import vlm
from cluster import Services
from machine import record
from mor_core.wire import WeightsRef

_RANK = 16
"""Rank of the adapter."""
_CHUNK = 1 << 20
"""Bytes that are written, sent or hashed at a time."""


async def swaps(options: argparse.Namespace, shape: str, kind: str) -> dict[str, Any]:
    """Publish and load versions; measure the seconds of each stage."""
    from mor_rollout import environment
    from mor_rollout.config import RolloutSettings
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine
    from mor_rollout.swaps import PolicySwapper
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint
    from mor_rollout.weights.pull import WeightsStore
    from mor_trainer.model import loading
    from mor_trainer.model.policy import Policy
    from mor_trainer.weights import version_writer

    model = options.state / shape
    vlm.save(vlm.SHAPES[shape], model)
    folder = options.state / "swap"
    shutil.rmtree(folder, ignore_errors=True)
    tuning = {"kind": "lora", "rank": _RANK} if kind == "lora" else {"kind": "full"}
    spec = vlm.spec_of(model=str(model), tuning=tuning, algorithm={"kl": {"beta": 0.0}})
    policy = Policy(*loading.load(str(model)), spec)
    with Services(folder, model) as services:
        services.queue()
        services.serve("control", "mor-trainer", "serve")
        prompts = vlm.write_prompts(folder / "prompts", vlm.SHAPES[shape], 64, 1)
        run = services.create({**spec.model_dump(mode="json"), "prompts": str(prompts)})
        settings = RolloutSettings(
            model=str(model),
            lora_max_rank=_RANK if kind == "lora" else 0,
            max_model_len=128,
            kv_cache_bytes=64 << 20,
            max_groups_in_flight=4,
            threads=options.threads,
            weights_dir=folder / "pulled",
            service_token=services.token,
            control_url=services.addresses["control"],
            log_level="error",
        )
        environment.prepare(settings)
        base = BaseCheckpoint(settings.model)
        engine = VllmEngine(settings, base, PromptCodec(settings, base))
        store = WeightsStore(settings, base)
        try:
            await engine.start()
            swapper = PolicySwapper(settings, engine, store)
            rounds = []
            for version in range(options.rounds + 1):
                with torch.no_grad():
                    for parameter in policy.trainable.values():
                        parameter.add_(1e-3)
                begun = time.perf_counter()
                manifest = version_writer.write_version(
                    folder / "runs" / run, run, version, str(model), model=policy.model, adapter=policy.adapter,
                    trainable=policy.trainable, keep=2,
                )  # fmt: skip
                published = time.perf_counter() - begun
                ref = WeightsRef(version=version)
                async with swapper.sampling(run, ref):
                    total = time.perf_counter() - begun
                assert swapper.times is not None and swapper.read_back is not None
                assert (swapper.read_back.version, swapper.read_back.unverified) == (version, 0)
                rounds.append({
                    "published": published, "pulled": swapper.times.pull_s, "swapped": swapper.times.swap_s,
                    "total": total,
                })  # fmt: skip
                print(shape, kind, version, {name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
        finally:
            await store.aclose()
            await engine.close()
    size = sum(file.bytes for file in manifest.files)
    measured = rounds[1:]  # the first round has a cold page cache and loads every tensor
    return {
        "shape": shape,
        "kind": kind,
        "bytes": size,
        "seconds": {name: statistics.median(one[name] for one in measured) for name in measured[0]},
        "rounds": measured,
        "machine_seconds": speeds(size, folder),
    }


def speeds(size: int, folder: Path) -> dict[str, float]:
    """Measure the seconds of this machine for ``size`` bytes alone."""
    content = os.urandom(min(size, 64 << 20))
    chunks = [content[: min(len(content), size - start)] for start in range(0, size, len(content))]

    def written() -> None:
        with (folder / "speed").open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def sent() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def send() -> None:
                with socket.create_connection(listener.getsockname()) as sender:
                    for chunk in chunks:
                        sender.sendall(chunk)

            thread = threading.Thread(target=send)
            thread.start()
            receiver, _ = listener.accept()
            with receiver:
                while receiver.recv(_CHUNK):
                    pass
            thread.join()

    def hashed() -> None:
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)

    found = {}
    for name, work in (("written and synced", written), ("sent over loopback", sent), ("hashed once", hashed)):
        begun = time.perf_counter()
        work()
        found[name] = time.perf_counter() - begun
    (folder / "speed").unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", choices=tuple(vlm.SHAPES), nargs="+", default=["tiny", "smollm2-135m"])
    parser.add_argument("--kinds", choices=("full", "lora"), nargs="+", default=["full", "lora"])
    parser.add_argument("--rounds", type=int, default=5, help="measured versions of each case")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the engine, which are idle otherwise")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/swap"), help="models and weights")
    options = parser.parse_args()
    options.state = options.state.resolve()
    cases = [asyncio.run(swaps(options, shape, kind)) for shape in options.shapes for kind in options.kinds]
    record(
        "swap", {"rank": _RANK, "rounds": options.rounds, "threads": options.threads, "clock": "wall", "cases": cases}
    )


if __name__ == "__main__":
    main()
