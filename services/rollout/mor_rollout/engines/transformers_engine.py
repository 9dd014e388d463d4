"""Engine on transformers: slower than vLLM, but it needs nothing except torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from mor_core.failures import quote_failure
from mor_core.model_family import check_complete
from mor_core.processed_prompt import repeated
from mor_core.tasks import on_executor

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import (
    EngineError,
    EnginePrompt,
    ImageMismatch,
    PromptInput,
    ReadBack,
    SampledResponse,
    SampledToken,
    SampleParams,
    SwapFailed,
    VersionSpan,
)
from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.checkpoint_files import TensorSource
from mor_rollout.weights.pull import PreparedWeights

Result = TypeVar("Result")


class TransformersEngine:
    """Engine with one model in this process, which samples one prompt at a time.

    ``mor_rollout.engines.protocol.Engine`` documents the methods.
    """

    name: Literal["transformers"] = "transformers"
    paused = None

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> None:
        self._settings = settings
        self._base = base
        self._codec = codec
        self._model: Any = None
        self._loaded: PreparedWeights | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")

    @property
    def failure(self) -> str | None:
        return None

    async def start(self) -> None:
        try:
            self._model = await self._run(lambda: self._build(self._base.tensors, None))
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"the base checkpoint did not load: {quote_failure(error)}") from error

    async def encode(self, prompt: PromptInput) -> EnginePrompt:
        inputs, token_ids, image_tokens, pixels = await self._codec.encode_in_time(prompt)
        if bool(image_tokens) != (pixels is not None):
            raise ImageMismatch(
                f"the prompt has {image_tokens} image tokens and {'no' if pixels is None else 'some'} pixels;"
                " use the processor files of this checkpoint"
            )
        return EnginePrompt(token_ids, image_tokens, pixels, inputs)

    async def sample(self, prompt: EnginePrompt, params: SampleParams, seeds: Sequence[int]) -> list[SampledResponse]:
        return await self._run(lambda: self._generate(prompt, params, seeds, lambda _: None))

    async def stream(self, prompt: EnginePrompt, params: SampleParams, seed: int) -> AsyncGenerator[SampledToken, None]:
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
        closed = False

        def on_step(step: list[tuple[int, float]]) -> None:
            if closed:
                raise asyncio.CancelledError
            loop.call_soon_threadsafe(tokens.put_nowait, step[0])

        work = asyncio.ensure_future(self._run(lambda: self._generate(prompt, params, [seed], on_step)))
        work.add_done_callback(lambda _: tokens.put_nowait(None))
        try:
            previous: tuple[int, float] | None = None
            while (token := await tokens.get()) is not None:
                if previous is not None:
                    yield SampledToken(*previous, None)
                previous = token
            (response,) = await work
            if previous is not None:
                yield SampledToken(*previous, response.finish_reason)
        finally:
            closed = True

    def _generate(
        self,
        prompt: EnginePrompt,
        params: SampleParams,
        seeds: Sequence[int],
        on_step: Callable[[list[tuple[int, float]]], None],
    ) -> list[SampledResponse]:
        import torch
        from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList

        from mor_rollout.engines.seeded_sampler import SeededSampler

        sampler = SeededSampler(params, seeds, self._codec.forbidden, on_step)
        device, dtype = self._model.device, self._model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in repeated(prompt.engine_input, len(seeds)).items()
        }
        config = GenerationConfig(
            max_new_tokens=params.max_tokens,
            eos_token_id=list(self._codec.stops),
            pad_token_id=self._codec.stops[0],
            do_sample=True,  # from the one token that the sampler left
            top_k=0,
        )
        with torch.inference_mode():
            # Not the family's own method, which may drop the sampler, as Janus's does.
            output = GenerationMixin.generate(
                self._model, **inputs, generation_config=config, logits_processor=LogitsProcessorList([sampler])
            )
        return [
            self._cut(row, logprobs)
            for row, logprobs in zip(output[:, len(prompt.token_ids) :].tolist(), sampler.logprobs, strict=True)
        ]

    def _cut(self, row: list[int], logprobs: list[float]) -> SampledResponse:
        """Return a response without the padding to the longest of its group."""
        end = next((position for position, token in enumerate(row) if token in self._codec.stops), None)
        length = len(row) if end is None else end + 1
        spans = (VersionSpan(self._loaded.version if self._loaded is not None else None, 0),)
        return SampledResponse(
            tuple(row[:length]), tuple(logprobs[:length]), "length" if end is None else "stop", spans
        )

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        full = weights.tensors if weights is not None and weights.kind == "full" else {}
        adapter = weights if weights is not None and weights.kind == "lora" else None
        try:
            async with asyncio.timeout(self._settings.swap_timeout_s):
                self._model = await self._run(lambda: self._build({**self._base.tensors, **full}, adapter))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise SwapFailed(f"the weights did not load: {quote_failure(error)}") from error
        self._loaded = weights
        return await self.read_back()

    async def perturb(self, seed: int, *, adapter: bool = False) -> ReadBack:
        def build() -> Any:
            return (
                self._build_with_noise_adapter(seed) if adapter else self._build(self._base.tensors, None, noise=seed)
            )

        self._model = await self._run(build)
        self._loaded = None
        return ReadBack(None, None, f"perturbed with seed {seed}", 0, len(self._base.tensors), ())

    def _build_with_noise_adapter(self, seed: int) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        model = self._build(self._base.tensors, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
            return get_peft_model(model, config).merge_and_unload().eval()

    def _build(
        self, sources: Mapping[str, TensorSource], adapter: PreparedWeights | None, noise: int | None = None
    ) -> Any:
        """Build a model of these tensors by transformers' own loader, which knows every renamed and tied tensor."""
        import torch
        from safetensors import safe_open
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        from mor_rollout.engines.self_test_noise import perturbed

        tensors: dict[str, Any] = {}
        for file in sorted({source.file for source in sources.values()}):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if name in sources and sources[name].file == file:
                        tensor = opened.get_tensor(name)
                        tensors[name] = tensor if noise is None else perturbed(tensor, name, noise)
        config = AutoConfig.from_pretrained(self._base.folder)
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=getattr(torch, self._settings.dtype),
            output_loading_info=True,
        )
        check_complete(self._base.model, report)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
        model.generation_config = GenerationConfig()
        return model.to(self._settings.device).eval()

    async def read_back(self) -> ReadBack:
        loaded = self._loaded
        sums = {name: source.checksum for name, source in self._base.tensors.items()}
        if loaded is not None:
            sums |= {name: source.checksum for name, source in loaded.tensors.items()}
        verified = await self._run(lambda: self._verified_tensors(loaded))
        return ReadBack(
            run=loaded.run if loaded else None,
            version=loaded.version if loaded else None,
            digest=checkpoint_files.digest(sums),
            verified=len(verified),
            unverified=len(self._base.tensors) - len(verified),
            mismatched=(),
        )

    def _verified_tensors(self, loaded: PreparedWeights | None) -> list[str]:
        """Return the tensors of the checkpoint that the model holds under the same name.

        Raises:
            SwapFailed: the model holds one of them with other values.
        """
        from safetensors import safe_open

        full = loaded.tensors if loaded is not None and loaded.kind == "full" else {}
        if loaded is not None and loaded.kind == "lora":
            return []
        held = self._model.state_dict()
        found = []
        for name, source in self._base.tensors.items():
            if name not in held:
                continue
            with safe_open((full.get(name) or source).file, framework="pt") as opened:
                expected = opened.get_tensor(name)
            if not bool((held[name].cpu() == expected.to(held[name].dtype)).all()):
                raise SwapFailed(f"the model holds other values in tensor {name!r} than it was given")
            found.append(name)
        return found

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await on_executor(self._thread, work)

    async def close(self) -> None:
        self._model = None
        self._thread.shutdown(wait=True, cancel_futures=True)
