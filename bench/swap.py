"""Measurement of a weight swap, from the trainer's memory to an engine that verifiably computes with the new version.

``python bench/swap.py`` writes ``bench/results/swap.json``: for each shape and kind the seconds of each stage.
*Published*: files written and hashed. *Pulled*: files over HTTP from run control, verified. *Swapped*: loaded by the
vLLM engine in place, caches emptied, and read back from it; nothing is sampled meanwhile. In each round this machine's
times for as many bytes alone are measured, too. The bound: the version written to the same disk once, and sent over
loopback once.

==================== =========================================================================================
``full``             every value has changed, so that the whole file is pulled; the engine computes in float32
``full-linked``      the same, and the engine links the file
``full-bfloat16``    as ``full``, published and computed with in bfloat16
``delta-bfloat16``   after a step of 1e-6, of which bfloat16 resolves a few percent: the engine pulls a delta
``lora``             an adapter, in float32
==================== =========================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import vlm
from cluster import Services
from machine import end_children_on_sigterm, record
from mor_core.weight_checksums import checksum
from mor_core.wire import WeightsRef
from prometheus_client import REGISTRY

KINDS = ("full", "full-linked", "full-bfloat16", "delta-bfloat16", "lora")
_RANK = 16
"""Rank of the adapter."""
SPEEDS = ("written and synced", "sent over loopback", "hashed once")
"""Names of this machine's times."""
_CHUNK = 1 << 20
"""Bytes that are sent at a time."""
_LIMIT_S = 1800.0
"""Longest start, pull or swap of the largest shape on a slow machine, seconds."""


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
    folder = options.state / "swap"
    shutil.rmtree(folder, ignore_errors=True)
    tuning = {"kind": "lora", "rank": _RANK} if kind == "lora" else {"kind": "full"}
    dtype = "bfloat16" if kind.endswith("bfloat16") else "float32"
    spec = vlm.spec_of(model=str(model), tuning=tuning, algorithm={"kl": {"beta": 0.0}})
    policy = Policy(*loading.load(str(model)), spec)
    with Services(folder, model) as services:
        services.queue()
        services.serve("control", "mor-trainer", "serve")
        prompts = vlm.write_prompts(folder / "prompts", vlm.SHAPES[shape], 64, 1)
        run = services.create({**spec.model_dump(mode="json"), "prompts": str(prompts)})
        settings = RolloutSettings(
            model=str(model),
            dtype=dtype,
            lora_max_rank=_RANK if kind == "lora" else 0,
            max_model_len=128,
            kv_cache_bytes=64 << 20,
            max_groups_in_flight=4,
            threads=options.threads,
            weights_dir=folder / "pulled",
            weights_kept=2,
            runs_dir=folder / "runs" if kind == "full-linked" else None,
            service_token=services.token,
            control_url=services.addresses["control"],
            start_timeout_s=_LIMIT_S,
            pull_timeout_s=_LIMIT_S,
            swap_timeout_s=_LIMIT_S,
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
                        parameter.add_(1e-6 if kind == "delta-bfloat16" else 1e-3)
                deltas = _deltas_used()
                begun = time.perf_counter()
                manifest = version_writer.write_version(
                    folder / "runs" / run, run, version, str(model), model=policy.model, adapter=policy.adapter,
                    trainable=policy.trainable, keep=2, dtype=getattr(torch, dtype),
                )  # fmt: skip
                published = time.perf_counter() - begun
                ref = WeightsRef(version=version)
                async with swapper.sampling(run, ref):
                    total = time.perf_counter() - begun
                assert swapper.times is not None and swapper.read_back is not None
                assert (swapper.read_back.version, swapper.read_back.unverified) == (version, 0)
                with_delta = _deltas_used() > deltas
                linked = any(file.stat().st_nlink > 1 for file in (folder / "pulled").glob(f"{version:08d}-*/*"))
                assert (with_delta, linked) == (kind == "delta-bfloat16" and version > 0, kind == "full-linked")
                size = sum(file.bytes for file in manifest.files)
                sent = 0 if linked else size
                if with_delta and manifest.delta is not None:
                    sent = manifest.delta.bytes
                rounds.append({
                    "published": published, "pulled": swapper.times.pull_s, "swapped": swapper.times.swap_s,
                    "total": total, "sent_bytes": sent, **speeds(size, folder),
                })  # fmt: skip
                print(shape, kind, version, {name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
        finally:
            await store.aclose()
            await engine.close()
    measured = rounds[1:]  # the first round has a cold page cache, loads every tensor, and has no version before it
    median = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
    return {
        "shape": shape,
        "kind": kind,
        "bytes": size,
        "sent_bytes": median.pop("sent_bytes"),
        "machine_seconds": {name: median.pop(name) for name in SPEEDS},
        "seconds": median,
        "rounds": measured,
    }


def _deltas_used() -> float:
    return REGISTRY.get_sample_value("mor_rollout_weight_deltas_total", {"outcome": "used"}) or 0.0


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
        for chunk in chunks:
            checksum(chunk, "blake3")

    found = {}
    for name, work in zip(SPEEDS, (written, sent, hashed), strict=True):
        begun = time.perf_counter()
        work()
        found[name] = time.perf_counter() - begun
    (folder / "speed").unlink()
    return found


def _case(options: argparse.Namespace, shape: str, kind: str) -> dict[str, Any]:
    return asyncio.run(swaps(options, shape, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", choices=tuple(vlm.SHAPES), nargs="+", default=["tiny", "smollm2-135m", "1b"])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5, help="measured versions of each case")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the engine, which are idle otherwise")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/swap"), help="models and weights")
    options = parser.parse_args()
    end_children_on_sigterm()
    options.state = options.state.resolve()
    cases = []
    for shape in options.shapes:
        vlm.save(vlm.SHAPES[shape], options.state / shape)
        for kind in options.kinds:  # a process each, whose end frees the memory of its engine
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                cases.append(pool.submit(_case, options, shape, kind).result())
    record(
        "swap", {"rank": _RANK, "rounds": options.rounds, "threads": options.threads, "clock": "wall", "cases": cases}
    )


if __name__ == "__main__":
    main()
