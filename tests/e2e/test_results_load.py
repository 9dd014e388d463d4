"""The result of a run with adapters loads in transformers, in vLLM and in PEFT, and answers the same in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.datafiles import read_prompts
from mor_core.optimisation import LoraTuning
from mor_trainer.run_files import checkpoint_of
from mor_trainer.update.model_export import export_checkpoint, write_aligned
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec, write_prompts
from tests.trainer.test_model_exports import checkpoint

_TOKENS = 12
_VLLM = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams
folder, text, picture, tokens = sys.argv[1:]
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=64 << 20)
prompt = {"prompt": text, "multi_modal_data": {"image": Image.open(picture)}}
(found,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=int(tokens)), use_tqdm=False)
print("ANSWER", json.dumps(list(found.outputs[0].token_ids)))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_a_result_answers_the_same_in_transformers_peft_and_vllm(tmp_path: Path) -> None:
    base = build_tiny_vlm(tmp_path / "base")
    prompts = write_prompts(tmp_path, 4)
    spec = make_spec(base, prompts, tuning=LoraTuning(rank=2), steps=4)
    trained = checkpoint(tmp_path, spec, list(read_prompts(prompts)), 4)
    export_checkpoint(checkpoint_of(tmp_path, 4), tmp_path / "adapter", adapter=True)
    write_aligned(spec, trained, tmp_path / "final", None)
    for file in [*(tmp_path / "adapter").glob("*.json"), *(tmp_path / "final").glob("*.json")]:
        assert str(tmp_path) not in file.read_text(), f"{file.name} travels with the model"

    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), (200, 30, 60)).save(picture)
    processor = AutoProcessor.from_pretrained(tmp_path / "final")
    content = [{"type": "image"}, {"type": "text", "text": "How many circles?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def answer(model: Any) -> list[int]:
        given = processor(text=text, images=[Image.open(picture)], return_tensors="pt")
        with torch.no_grad():
            whole = model.eval().generate(**given, do_sample=False, max_new_tokens=_TOKENS)
        return [int(token) for token in whole[0, given["input_ids"].shape[1] :]]

    untrained = AutoModelForImageTextToText.from_pretrained(base)
    before = answer(untrained)
    final = answer(AutoModelForImageTextToText.from_pretrained(tmp_path / "final"))
    assert final != before, "the training changed the answer, so that an adapter that is left out would be noticed"
    assert answer(PeftModel.from_pretrained(untrained, tmp_path / "adapter")) == final
    assert _answer_of_vllm(tmp_path / "final", text, picture) == final


def _answer_of_vllm(folder: Path, text: str, picture: Path) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _VLLM, str(folder), text, str(picture), str(_TOKENS)],
        env={
            **os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1",
            "TORCH_COMPILE_DISABLE": "1",
        },
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    return [int(token) for token in json.loads(lines[0].removeprefix("ANSWER "))]
