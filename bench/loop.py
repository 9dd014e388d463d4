"""Comparison of the whole loop with TRL's GRPOTrainer, which generates with transformers or vLLM: seconds per step.

``python bench/loop.py`` writes ``bench/results/loop-SHAPE.json``. All sides take the same model, pictures, prompts,
group size, response length, rule of reward, type and cores, each picture is new to its step, KL penalty on, image
encoder frozen. MoR runs all its services, a client's reward service included, on those cores: strictly on-policy, where
engine and trainer take turns on all of them, and overlapped, with one thread each. In each round every side runs once,
in turns, and its steps after the first few count. Measured rounds are stored below ``--state`` with their commit, so an
interrupted benchmark resumes; ``--anew`` discards them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import trl_baseline
import vlm
from cluster import Services
from machine import commit, end_children_on_sigterm, record
from scorer import score

TRL, TRL_VLLM = "trl", "trl-vllm"
SIDES = {TRL: None, TRL_VLLM: None, "on-policy": 0, "overlapped": 1}
"""Sides of the comparison, with ``max_staleness`` of MoR's."""
_PICTURE = ("<image>", "<fake_token_around_image>", "<global-img>")
"""Tokens of a picture in Idefics3, the family that is compared."""
_TIMEOUT_S = 3000.0
"""Longest measurement of one side in one round, seconds."""
_SETTINGS = ("prompt", "size", "response", "groups", "budget", "steps", "warm_up", "cores")


# --- MoR ----------------------------------------------------------------------------------------------------------


def take_steps_of_mor(options: argparse.Namespace, staleness: int) -> list[dict[str, Any]]:
    """Start everything, train, and return each measured step's seconds, from start to start, and shares."""
    shape = vlm.SHAPES[options.shape]
    threads = options.cores if staleness == 0 else 1
    skipped = max(
        options.warm_up, staleness
    )  # overlapped, the first step waits for samples that later ones have in advance
    steps = skipped + options.steps + 1
    folder = options.state / "run"
    shutil.rmtree(folder, ignore_errors=True)
    prompts = vlm.write_prompts(folder / "prompts", shape, options.prompt, options.groups * steps)
    with Services(folder, Path(options.model), threads=threads) as services:
        services.queue()
        services.scoring()
        services.serve("control", "mor-trainer", "serve")
        services.serve("rollout", "mor-rollout", "serve", **rollout_settings(options, staleness, threads))
        services.work(MOR_TORCH_THREADS=str(threads))
        spec = vlm.spec_of(
            model=options.model,
            prompts=str(prompts),
            steps=steps,
            groups_per_step=options.groups,
            group_size=options.size,
            sampling={"max_tokens": options.response},
            micro_batch_tokens=max(options.budget, options.prompt + options.size * options.response),
            max_staleness=staleness,
            checkpoint_every=1_000_000,
        )
        points = services.train(spec.model_dump(mode="json"), _TIMEOUT_S)
    tokens = options.groups * (options.prompt + options.size * (options.response - 1))
    assert all(0.9 * tokens < point["processed_tokens"] <= tokens for point in points), points[0]["processed_tokens"]
    pairs = list(itertools.pairwise(points))[skipped:]
    return [{"seconds": after["begun_at"] - before["begun_at"], "shares": before["seconds"]} for before, after in pairs]


def rollout_settings(options: argparse.Namespace, staleness: int, threads: int) -> dict[str, str]:
    shape = vlm.SHAPES[options.shape]
    groups = options.groups * (1 + staleness)
    places = groups * (options.prompt + options.size * (options.response + 64))
    cache = places * 8 * shape.layers * shape.key_heads * shape.head_dim
    return {
        "MOR_MAX_MODEL_LEN": str(options.prompt + options.response + 32),
        "MOR_MAX_IMAGES": "1",
        "MOR_MAX_NUM_SEQS": str(groups * options.size),
        "MOR_MAX_GROUPS_IN_FLIGHT": str(groups),
        "MOR_KV_CACHE_BYTES": str(max(64 << 20, 2 * cache)),
        "MOR_THREADS": str(threads),
    }


# --- TRL ----------------------------------------------------------------------------------------------------------


def take_steps_of_trl(options: argparse.Namespace, *, vllm: bool) -> list[dict[str, Any]]:
    """Train with TRL and return each measured step's seconds; with ``vllm`` an engine in its process generates."""
    from datasets import Dataset
    from mor_core.sampling import forbidden_token_ids
    from PIL import Image
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    shape = vlm.SHAPES[options.shape]
    total = options.warm_up + options.steps
    model, processor = trl_baseline.model_of(options)
    prompts = vlm.write_prompts(options.state / "trl-prompts", shape, options.prompt, total * options.groups)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    data = {
        "prompt": [[{"role": "user", "content": row["prompt"]}] for row in rows],
        "image": [Image.open(prompts.parent / row["images"][0]).convert("RGB") for row in rows],
    }
    steps: list[dict[str, Any]] = []

    class Checked(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
            assert {len(ids) for ids in prompt_ids} == {options.prompt}
            return super()._generate_single_turn(prompt_ids, *rest, **named)

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append({"seconds": time.perf_counter() - self._begun})

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [score(completion[0]["content"]) for completion in completions]

    forbidden = forbidden_token_ids(processor, shape.vocabulary)
    generation = (
        _by_vllm(options, shape, forbidden) if vllm else {"generation_kwargs": {"suppress_tokens": list(forbidden)}}
    )
    config = trl_baseline.config(
        options, total, temperature=1.0, top_p=1.0, top_k=0, gradient_checkpointing=False, **generation
    )
    trainer = Checked(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(data),
        reward_funcs=reward,
        processing_class=processor,
        callbacks=[Timed()],
    )
    if vllm:
        _fit_to_cpu(trainer.vllm_generation, processor, options.prompt)
    trainer.train()
    return steps[options.warm_up :]


def _by_vllm(options: argparse.Namespace, shape: vlm.Shape, forbidden: Collection[int]) -> dict[str, Any]:
    """Return TRL's settings of an engine in its own process, with room for all responses of a step."""
    allowed = sorted(set(range(shape.vocabulary)) - set(forbidden))
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": options.prompt + options.response + 32,
        "generation_kwargs": {"allowed_token_ids": allowed},
    }


def _fit_to_cpu(generation: Any, processor: Any, length: int) -> None:
    """Replace what fails in TRL's engine here.

    TRL cannot load weights that a CPU has repacked: vLLM's own reload can. TRL passes prompts in which the tokens of
    the picture are expanded, and vLLM expands them once more: it is given the prompt as written.
    """
    sample = generation.generate
    picture = processor.tokenizer.convert_tokens_to_ids(list(_PICTURE))

    def generate(prompts: list[list[int]], **rest: Any) -> Any:
        found = sample(prompts=[_as_written(ids, picture) for ids in prompts], **rest)
        assert {len(ids) for ids in found[0]} == {length}
        return found

    def load() -> None:
        head = generation.model.get_output_embeddings().weight  # on a CPU packed by itself, also where it is tied
        weights = {**dict(generation._iter_named_params()), "lm_head.weight": head.data}
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        generation.llm.reset_prefix_cache()

    generation.generate, generation.sync_weights = generate, load


def _as_written(ids: Sequence[int], picture: Sequence[int]) -> list[int]:
    """Put the first of the tokens ``picture`` in the place of all."""
    begin = next(place for place, token in enumerate(ids) if token in picture)
    return [*ids[:begin], picture[0], *(token for token in ids[begin:] if token not in picture)]


# --- in turns -----------------------------------------------------------------------------------------------------


def run(side: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the steps of one side."""
    staleness = SIDES[side]
    if staleness is not None:
        return take_steps_of_mor(options, staleness)
    command = [str(trl_baseline.environment(options.state)), __file__, "--side", side, "--shape", options.shape]
    for name in (*_SETTINGS, "state", "model"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    threads = {"OMP_NUM_THREADS": str(options.cores), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True, timeout=_TIMEOUT_S
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all rounds of one prompt length."""
    settings = "-".join(str(getattr(options, name)) for name in _SETTINGS)
    folder = options.state / "rounds" / f"{options.shape}-{settings}"
    if options.anew:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, list[list[dict[str, Any]]]] = {side: [] for side in SIDES}
    commits = set()
    for number in range(options.rounds):
        for side in SIDES:
            kept = folder / f"{number}-{side}.json"
            if not kept.exists():
                kept.write_text(json.dumps({"commit": commit(), "steps": run(side, options)}))
            found = json.loads(kept.read_text())
            steps[side].append(found["steps"])
            commits.add(str(found["commit"]))
            print(number, side, [round(step["seconds"], 2) for step in steps[side][-1]], flush=True)
    rounds = {side: [statistics.median(step["seconds"] for step in one) for one in steps[side]] for side in SIDES}
    return {
        "commits": sorted(commits),
        "seconds": {side: statistics.median(rounds[side]) for side in SIDES},
        "speedup": _speedup(rounds, TRL),
        "speedup_over_vllm": _speedup(rounds, TRL_VLLM),
        "rounds": rounds,
        "shares": {side: _shares(steps[side]) for side, staleness in SIDES.items() if staleness is not None},
    }


def _speedup(rounds: dict[str, list[float]], peer: str) -> dict[str, float]:
    """Return the median over rounds of the peer's seconds by MoR's, for each side of MoR's."""
    return {
        side: statistics.median(theirs / ours for ours, theirs in zip(rounds[side], rounds[peer], strict=True))
        for side, staleness in SIDES.items()
        if staleness is not None
    }


def _shares(rounds: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Compute the fraction of the time of each named share."""
    totals: dict[str, float] = {}
    for step in itertools.chain.from_iterable(rounds):
        for name, seconds in step["shares"].items():
            totals[name] = totals.get(name, 0.0) + seconds
    return {name: seconds / sum(totals.values()) for name, seconds in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = [name for name, shape in vlm.SHAPES.items() if shape.family == "idefics3"]
    parser.add_argument("--shape", choices=shapes, default="smollm2-135m")
    parser.add_argument("--prompt", type=int, default=120, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, nargs="+", default=[120, 512], help="all prompt lengths to compare")
    parser.add_argument("--size", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--response", type=int, default=16, help="tokens of a response")
    parser.add_argument("--groups", type=int, default=16, help="prompts in a step")
    parser.add_argument("--budget", type=int, default=4096, help="MoR's micro_batch_tokens")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each side in each round")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each side that are not measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="cores, the first, on which either side runs")
    parser.add_argument("--anew", action="store_true", help="discard stored rounds and measure again")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/trl"), help="environment, model, rounds")
    parser.add_argument("--side", choices=(TRL, TRL_VLLM), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    end_children_on_sigterm()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.side:
        torch.set_num_threads(options.cores)
        print("\n" + json.dumps(take_steps_of_trl(options, vllm=options.side == TRL_VLLM)))
        return
    options.state = options.state.resolve()
    options.model = str(options.state / options.shape)
    vlm.save(vlm.SHAPES[options.shape], options.model)
    cases = []
    for prompt in options.prompts:
        options.prompt = prompt
        cases.append({"prompt": prompt, **compare(options)})
        print({key: cases[-1][key] for key in ("prompt", "seconds", "speedup")}, flush=True)
        kept = ("shape", "size", "response", "groups", "budget", "steps", "warm_up", "rounds", "cores")
        figures = {key: getattr(options, key) for key in kept}
        record(f"loop-{options.shape}", {**figures, "clock": "wall", "trl": trl_baseline.TRL, "cases": cases})


if __name__ == "__main__":
    main()
