"""Tables on the whole loop: comparison with TRL, overlap of sampling and training, weight swaps."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table

_LOOPS = {"tiny": "the 0.7 M model", "smollm2-135m": "the 137 M model", "1b": "the 1 B model"}
_SWAPS = {
    "full": "full, float32",
    "full-linked": "full, float32, linked",
    "full-bfloat16": "full, bfloat16",
    "delta-bfloat16": "delta, bfloat16",
    "lora": "LoRA",
}
_VLLM_HELPED = (
    " Two of TRL's own ways to its engine fail on CPUs and are replaced: weights are loaded by vLLM's reload, and a "
    "prompt is given as it was written, before its picture's tokens are expanded."
)
_STAGES = ("published", "pulled", "swapped", "total")


def whole_loop() -> str:
    """Format the loop against TRL, overlap, and weight swaps as Markdown."""
    loops = [_against_trl(shape, title) for shape, title in _LOOPS.items() if read(f"loop-{shape}") is not None]
    parts = loops or ["Not measured yet; run `python bench/loop.py`.\n"]
    return "\n".join([*parts, _overlap(), _swaps()])


def _against_trl(shape: str, title: str) -> str:
    result = read(f"loop-{shape}")
    assert result is not None
    ways = list(result["cases"][0]["speedup"])
    peers = {"trl": "speedup"} | (
        {"trl-vllm": "speedup_over_vllm"} if "trl-vllm" in result["cases"][0]["seconds"] else {}
    )
    titles = {"trl": "TRL", "trl-vllm": "TRL with vLLM"}
    rows = [["prompt, tokens", *(f"{titles[peer]}, s" for peer in peers)]]
    rows[0] += [cell for way in ways for cell in (f"MoR {way}, s", *(f"faster than {titles[peer]}" for peer in peers))]
    rows.append(["--:"] * len(rows[0]))
    for case in result["cases"]:
        row = [f"{case['prompt']}", *(f"{case['seconds'][peer]:.2f}" for peer in peers)]
        for way in ways:
            row += [f"{case['seconds'][way]:.2f}", *(f"{case[ratio][way]:.2f}x" for ratio in peers.values())]
        rows.append(row)
    command = "python bench/loop.py" + ("" if shape == "smollm2-135m" else f" --shape {shape}")
    commits = sorted({commit for case in result["cases"] for commit in case["commits"]})
    return (
        f"A step of the whole loop, {title}, against TRL {result['trl']}, which generates with transformers"
        f"{' or with vLLM in its process' if len(peers) > 1 else ''}: "
        f"{result['groups']} prompts with a picture each x {result['size']} responses of {result['response']} tokens, "
        f"all of MoR's services on the same {result['cores']} cores. Rounds in turns: {result['rounds']}, measured "
        f"steps of each side in a round: {result['steps']}, steps before them: {result['warm_up']}, overlapped at "
        f"least one, which fills the loop.{_VLLM_HELPED if len(peers) > 1 else ''}\n\n"
        f"{table(rows)}\n{measured_on({**result, 'commit': ' and '.join(commits)}, command)}\n"
    )


def _overlap() -> str:
    result = read("overlap-smollm2-10-layers") or read("overlap-tiny")
    if result is None:
        return "Not measured yet; run `python bench/overlap.py`.\n"
    seconds = result["seconds"]
    rows = [
        ["sampler alone, s", "trainer alone, s", "overlapped, s", "of the slower"],
        ["--:"] * 4,
        [
            *(f"{seconds[name]:.2f}" for name in ("sampler", "trainer", "overlapped")),
            f"{100 * result['of_the_slower']:.0f} %",
        ],
    ]
    command = "python bench/overlap.py" + ("" if result["shape"] != "tiny" else " --shape tiny")
    return (
        f"Overlap, sampler and trainer pinned to a core each: seconds of a step of {result['groups']} prompts of "
        f"{result['prompt']} tokens x {result['size']} responses of {result['response']}.\n\n"
        f"{table(rows)}\n{measured_on(result, command)}\n"
    )


def _swaps() -> str:
    result = read("swap")
    if result is None:
        return "Not measured yet; run `python bench/swap.py`.\n"
    rows = [["weights", "MB", "sent, MB", *(f"{stage}, s" for stage in _STAGES), "bound, s", "of the bound"]]
    rows.append(["---", *["--:"] * (len(rows[0]) - 1)])
    rows += map(_swap, result["cases"])
    return (
        "A new version, from the trainer's memory until the read-back of the vLLM engine. *Swapped* is the time "
        "without sampling. Bound: as many bytes written to this machine's disk once, and sent over loopback once.\n\n"
        f"{table(rows)}\n{measured_on(result, 'python bench/swap.py')}\n"
    )


def _swap(case: dict[str, Any]) -> list[str]:
    bound = sum(case["machine_seconds"][name] for name in ("written and synced", "sent over loopback"))
    title = f"{_LOOPS.get(case['shape'], case['shape'])}, {_SWAPS[case['kind']]}"
    sizes = [f"{count / 1e6:.2f}" for count in (case["bytes"], case.get("sent_bytes", case["bytes"]))]
    times = [f"{time:.3f}" for time in (*(case["seconds"][stage] for stage in _STAGES), bound)]
    return [title, *sizes, *times, f"{case['seconds']['total'] / bound:.1f}x"]
