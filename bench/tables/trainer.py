"""Tables on the trainer's part of a step: shared prompts, comparison with peers, ways to share, ranks."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table

_MODELS = {
    "smollm2-135m": "SmolLM2-135M's shape",
    "smollm2-10-layers": "SmolLM2-135M's shape with 10 of its 30 layers",
    "gemma3-small": "Gemma 3's layers at SmolLM2-135M's width, five of six with a window of 256 tokens, twelve in all",
    "qwen3.5-small": "Qwen3.5's layers at SmolLM2-135M's width, gated delta nets in three of four, twelve in all",
    "qwen2.5-vl-3b": "the language model of Qwen2.5-VL-3B's shape with a small image encoder",
}
_ON_CPU = ("smollm2-135m", "smollm2-10-layers", "gemma3-small", "qwen3.5-small")
"""Shapes with results on CPUs."""
_ON_GPU = "qwen2.5-vl-3b"
_PEERS = {"trl": "TRL", "verl": "verl"}
_VERL = (
    " verl has no platform for CPUs: the bench registers one, and verl's FSDP engine on it, by verl's own interfaces. "
    "Its workers for actor and reference run with FSDP2 over gloo, on one rank, in one process without Ray, in float32 "
    "and with PyTorch's attention; without flash-attn it cannot leave padding out, of which these responses of one "
    "length have none. As with TRL, the sampler's log-probabilities need no forward pass."
)
_PLOT = "Speed-up of a step by shared prompts, by length of the prompt, for each group size, with its bound"


def trainer() -> str:
    """Format shared prompts against plain, the step against peers, and the ways to share, as Markdown."""
    listed = []
    for file, name, show in (
        ("shared_prompt", "shared-prompt", _shared),
        ("trainer_step", "trainer-step", _against_peers),
        ("arrangements", "arrangements", _arrangements),
        ("ranks", "ranks", _ranks),
    ):
        command = f"python bench/{file}.py"
        found = [result for shape in _ON_CPU if (result := read(f"{name}-{shape}")) is not None]
        listed += [f"{show(result)}\n{_where(result, command)}\n" for result in found]
        if not found:
            listed.append(f"Not measured yet; run `{command}`.\n")
    return "\n".join(listed)


def on_gpu() -> str:
    """Format shared prompts against plain, and the step against peers, on a GPU as Markdown."""
    listed = []
    for file, name, show in (
        ("shared_prompt", "shared-prompt", _shared_on_gpu),
        ("trainer_step", "trainer-step", _against_peers),
    ):
        result = read(f"{name}-{_ON_GPU}-cuda")
        assert result is not None, f"bench/results has {name} for this page"
        listed.append(f"{show(result)}\n{_where(result, f'python bench/{file}.py --device cuda')}\n")
    return "\n".join(listed)


def _shared_on_gpu(result: dict[str, Any]) -> str:
    rows = [
        ["prompt, tokens", "responses", "", "s", "response tokens/s", "MFU", "activations", "faster", "of the bound"],
        ["--:", "--:", "---", *["--:"] * 6],
    ]
    for case in result["cases"]:
        for path in ("plain", "shared"):
            found, shared = case[path], path == "shared"
            rows.append([
                f"{case['prompt']}",
                f"{case['group_size']} x {case['response']}",
                path,
                f"{found['forward_backward']:.2f}",
                f"{found['response_tokens_per_second']:.0f}",
                f"{100 * found['mfu']:.0f} %",
                f"{found['activation_gb']:.1f} GB",
                f"{case['speedup']:.2f}x" if shared else "",
                f"{100 * case['of_bound']:.0f} %" if shared else "",
            ])  # fmt: skip
    title = (
        f"Shared against plain on a GPU: forward and backward pass of a step, groups: {result['groups']}, policy and "
        f"reference, at most {result['budget']} tokens at once. MFU: of {result['peak_tflops']:g} TFLOP/s. "
        "Activations: peak memory above weights, gradients and optimiser state."
    )
    return f"{title}\n\n{table(rows)}"


def _shared(result: dict[str, Any]) -> str:
    rows = [
        ["prompt, tokens", "responses", "plain, s", "shared, s", "faster", "FLOP bound", "of the bound"],
        ["--:"] * 7,
        *(
            [
                f"{case['prompt']}",
                f"{case['group_size']} x {case['response']}",
                f"{case['plain']['forward_backward']:.2f}",
                f"{case['shared']['forward_backward']:.2f}",
                f"{case['speedup']:.2f}x",
                f"{case['bound']:.2f}x",
                f"{100 * case['of_bound']:.0f} %",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"Shared against plain: forward and backward pass of a step, groups: {result['groups']}, policy and reference. "
        "The bound is the ratio of floating-point operations, the language-model head included."
    )
    if max(case["of_bound"] for case in result["cases"]) > 1.1:
        title += " It counts what a token sees; the plain path also multiplies keys that a window hides."
    name = f"shared-prompt-{result['shape']}"
    plot = "" if len(result["cases"]) < 3 else f"\n![{_PLOT}](../bench/results/{name}.svg)\n"
    return f"{title}\n\n{table(rows)}{plot}"


def _against_peers(result: dict[str, Any]) -> str:
    rows = [
        ["prompt, tokens", "peer", "s", "MoR, s", "faster", "activations", "MoR, activations", "share"],
        ["--:", "---", *["--:"] * 6],
        *(
            [
                f"{case['prompt']}",
                _PEERS[peer],
                f"{case['seconds'][peer]:.2f}",
                f"{case['seconds']['mor']:.2f}",
                f"{case['speedup'][peer]:.2f}x",
                f"{case['activation_gb'][peer]:.2f} GB",
                f"{case['activation_gb']['mor']:.2f} GB",
                f"{100 * case['activation_share'][peer]:.0f} %",
            ]
            for case in result["cases"]
            for peer in result["peers"]
        ),
    ]
    peers = " and ".join(f"{_PEERS[peer]} {version}" for peer, version in result["peers"].items())
    rounds = f", rounds in turns: {result['rounds']}" if result["rounds"] > 1 else ""
    title = (
        f"The trainer's step against {peers}: {result['groups']} prompts with a picture each x {result['size']} "
        f"responses of {result['response']} tokens, generation left out, optimiser included{rounds}. For time MoR "
        f"packs up to {result['budget']} tokens, a peer takes a group at a time. Activations: peak memory above "
        "weights, gradients and optimiser state, with a group at a time on all sides."
    )
    return f"{title}{_VERL if 'verl' in result['peers'] else ''}\n\n{table(rows)}"


def _arrangements(result: dict[str, Any]) -> str:
    ways = list(result["cases"][0]["seconds"])
    rows = [
        ["prompt, response", *(f"{way}, s" for way in ways), "largest gradient difference"],
        ["--:"] * (len(ways) + 2),
        *(
            [
                f"{case['prompt']}, {case['response']}",
                *(f"{case['seconds'][way]:.2f}" for way in ways),
                f"{max(case['gradient_difference'].values()):.0e}",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"Ways to share a prompt: forward and backward pass of the language model, groups: {result['groups']}, "
        f"{result['size']} responses each; the trainer uses `packed`."
    )
    return f"{title}\n\n{table(rows)}"


def _ranks(result: dict[str, Any]) -> str:
    rows = [
        ["trained", "one process, s", "two ranks, s", "gathering, s", "difference of losses", "difference of weights"],
        ["---", *["--:"] * 5],
        *(
            [
                {"full": "all parameters", "lora": "adapters"}[case["tuning"]],
                f"{case['seconds']['one']:.2f}",
                f"{case['seconds']['two']:.2f}",
                f"{case['gather_seconds']:.2f}",
                f"{case['metric_difference']['loss']:.0e}",
                f"{case['weight_difference']:.0e}",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"A process of two threads against two ranks of one thread each: the update of a step of {result['groups']} "
        f"prompts of {result['prompt']} tokens x {result['size']} responses of {result['response']} tokens. "
        "Differences: the largest of a step's loss, relative to the largest loss, and the norm of that of the trained "
        "weights after the last step, relative to theirs. Gathering: the time to collect the published tensors."
    )
    return f"{title}\n\n{table(rows)}"


def _where(result: dict[str, Any], command: str) -> str:
    cpu = result.get("clock") == "cpu"
    clock = "CPU seconds of the process, as others used the machine" if cpu else "wall-clock seconds"
    threads = f", threads: {result['threads']}" if "threads" in result else ""
    products = "bfloat16 products" if result["machine"].get("accelerator") else "float32"
    where = measured_on(result, f"{command} --shape {result['shape']}")
    return f"Model: {_MODELS[result['shape']]}, random weights, {products}; {clock}{threads}. {where}"
