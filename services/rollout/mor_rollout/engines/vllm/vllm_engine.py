"""Engine on vLLM's asynchronous engine."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import structlog
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.pixel_hash import PIXEL_FIELDS, pixel_sha256
from mor_core.tasks import in_thread
from mor_core.vision import prompt_text
from mor_core.wire import image_hashes

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
from mor_rollout.engines.self_test_noise import write_noise_adapter
from mor_rollout.engines.vllm.error_log import ErrorLog, describe_chain
from mor_rollout.engines.vllm.native_libraries import check_native_libraries, import_failure, with_advice
from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import PreparedWeights

Result = TypeVar("Result")

_ADAPTER_ID = 1
"""vLLM's number of the adapter; the engine holds one at a time."""
_BASE_LABEL = "base"
"""Version label of responses that the base checkpoint sampled."""
_UNKNOWN = "unknown"
"""Stands for the hash of a tensor whose values in the engine are not known."""
_CLOSE_S = 5.0
"""Longest wait for vLLM's output task to end, seconds; a cancelled task needs far less."""
_CACHE_RESET_ATTEMPTS = 50
_CACHE_RESET_INTERVAL_S = 0.02
"""vLLM frees the blocks of a finished response one step later, so the cache can be emptied after a step or two; a
second covers the longest step on a CPU."""

log = structlog.get_logger(__name__)


class VllmEngine:
    """Engine on vLLM, in its own process.

    ``mor_rollout.engines.protocol.Engine`` documents the methods. Beside them it receives full weights that a trainer
    broadcasts: ``join_transfer_group``, ``begin_transfer``, ``receive_tensors``, ``end_transfer``.
    """

    name: Literal["vllm"] = "vllm"

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> None:
        self._settings = settings
        self._base = base
        self._codec = codec
        self._engine: Any = None
        self._errors = ErrorLog()
        self._adapter: Any = None
        self._loaded: PreparedWeights | None = None
        self._noise_seed: int | None = None
        self._tensor_hashes = {name: source.sha256 for name, source in base.tensors.items()}
        """SHA-256 of each tensor in the engine, by the base checkpoint's names."""
        self._hashes_before_transfer = self._tensor_hashes
        self._broadcast_tensors: frozenset[str] = frozenset()
        """Tensors that came by broadcast and are in no file."""
        self._vision_tensors: frozenset[str] = frozenset(base.tensors)
        """Tensors on which encoder outputs may depend."""
        self._paused = False
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        if self._failure is None and self._engine is not None and self._engine.errored:
            cause = self._errors.fatal_error() or self._engine.dead_error
            self._failure = f"vLLM's engine died ({cause})"
        return self._failure

    async def start(self) -> None:
        check_native_libraries(self._settings)
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                self._engine = await asyncio.to_thread(self._start)
                names = list(self._base.tensors)
                self._vision_tensors = frozenset((await self._call("mor_vision_tensors", names))[0])
                await self._set_version_label(None)
        except TimeoutError as error:
            raise EngineError(
                f"vLLM did not start in {self._settings.start_timeout_s:g} s (MOR_START_TIMEOUT_S);"
                " raise the limit for a large model"
            ) from error
        except ImportError as error:
            raise import_failure(error) from error
        except Exception as error:
            cause = self._errors.start_failure() or with_advice(describe_chain(error))
            raise EngineError(f"vLLM did not start: {cause}") from error

    def _start(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from mor_rollout.engines.vllm.arguments import engine_arguments

        arguments = engine_arguments(self._settings, self._base, self._codec)
        arguments["logging_config"] = self._errors.open()
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        if self._settings.max_images:
            # ``encode`` compares the two outputs, so both sides use the same image processor object.
            engine.renderer.get_mm_processor().info.get_hf_processor().image_processor = (
                self._codec.processor.image_processor
            )
        return engine

    async def encode(self, prompt: PromptInput) -> EnginePrompt:
        _, token_ids, image_tokens, pixels = await in_thread(self._codec.encode, prompt)
        hashes = image_hashes(prompt.messages)
        request: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if hashes:
            request = {
                "prompt": prompt_text(self._codec.processor, prompt.messages),
                "multi_modal_data": {"image": [prompt.images[digest] for digest in hashes]},
                "multi_modal_uuids": {"image": list(hashes)},
            }
        renderer = self._engine.renderer
        without_special = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=False)
        (rendered,) = await renderer.render_cmpl_async([request], without_special)
        engine_token_ids = tuple(rendered["prompt_token_ids"])
        engine_pixels = pixel_sha256(
            *(
                {field: item[field].data for field in PIXEL_FIELDS if field in item}
                for item in rendered.get("mm_kwargs", {}).get("image", ())
            )
        )
        if engine_token_ids != token_ids or engine_pixels != pixels:
            raise ImageMismatch(
                f"vLLM made {len(engine_token_ids)} prompt tokens and pixels {str(engine_pixels)[:12]}, the processor"
                f" made {len(token_ids)} and {str(pixels)[:12]}; the two must use the same transformers version and"
                " processor files"
            )
        return EnginePrompt(token_ids, image_tokens, pixels, rendered)

    async def sample(self, prompt: EnginePrompt, params: SampleParams, seeds: Sequence[int]) -> list[SampledResponse]:
        tasks = [asyncio.create_task(self._sample_one(prompt, params, seed)) for seed in seeds]
        try:
            return await asyncio.gather(*tasks)
        finally:  # a failure or a timeout stops the other responses of the group
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample_one(self, prompt: EnginePrompt, params: SampleParams, seed: int) -> SampledResponse:
        token_ids: list[int] = []
        logprobs: list[float] = []
        async with aclosing(self._outputs(prompt, params, seed, final_only=True)) as outputs:
            async for output in outputs:
                token_ids += output.token_ids
                logprobs += _logprobs(output)
        return SampledResponse(tuple(token_ids), tuple(logprobs), _finish_reason(output), _spans(output))

    async def stream(self, prompt: EnginePrompt, params: SampleParams, seed: int) -> AsyncGenerator[SampledToken, None]:
        async with aclosing(self._outputs(prompt, params, seed, final_only=False)) as outputs:
            async for output in outputs:
                pairs = list(zip(output.token_ids, _logprobs(output), strict=True))
                for position, (token_id, logprob) in enumerate(pairs, 1):
                    last = position == len(pairs) and output.finish_reason is not None
                    yield SampledToken(token_id, logprob, _finish_reason(output) if last else None)

    async def _outputs(
        self, prompt: EnginePrompt, params: SampleParams, seed: int, *, final_only: bool
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
            stop_token_ids=list(self._codec.stops),
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
        await self._with_timeout("pausing", self._engine.pause_generation(mode="keep", clear_cache=False))
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            await self._with_timeout("resuming", self._engine.resume_generation())

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        if weights is not None and weights.folder is None:
            raise SwapFailed(
                f"version {weights.version} came by broadcast and is in no file, so it cannot be loaded again"
            )
        full = weights is not None and weights.kind == "full"
        target = {**self._base.tensors, **(weights.tensors if weights is not None and full else {})}
        changed = [name for name, source in target.items() if self._tensor_hashes[name] != source.sha256]
        files = {name: target[name].file for name in checkpoint_files.with_load_units(target, changed)}
        self._loaded, self._noise_seed, self._broadcast_tensors = weights, None, frozenset()
        await self._swap(files, {name: source.sha256 for name, source in target.items()}, changed)
        await self._use_adapter(weights if not full else None)
        read_back = await self.read_back(names=list(files))
        await self._set_version_label(weights)
        return read_back

    async def _set_version_label(self, weights: PreparedWeights | None) -> None:
        """Make vLLM label the tokens it samples from now on with this version."""
        label = _BASE_LABEL if weights is None else str(weights.version)
        await self._with_timeout("labelling", self._engine.update_weight_version(label))

    async def perturb(self, seed: int, *, adapter: bool = False) -> ReadBack:
        if adapter:
            return await self._perturb_by_adapter(seed)
        files = {name: source.file for name, source in self._base.tensors.items()}
        self._loaded, self._noise_seed = None, seed
        await self._swap(files, dict.fromkeys(files, _UNKNOWN), list(files))
        return await self.read_back()

    async def _perturb_by_adapter(self, seed: int) -> ReadBack:
        modules = {
            name.removesuffix(".weight"): source.shape
            for name, source in self._base.tensors.items()
            if name not in self._vision_tensors and _is_adaptable(name)
        }
        self._settings.weights_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._settings.weights_dir) as folder:
            path = Path(folder)
            write_noise_adapter(path, modules, min(4, self._settings.lora_max_rank), seed)
            tensors = checkpoint_files.tensors_of(path)
            return await self.load(PreparedWeights("self-test", 0, "lora", path, tensors, _UNKNOWN))

    async def _swap(self, files: dict[str, Path], hashes: dict[str, str], changed: list[str]) -> None:
        """Load tensors from ``files`` and empty the caches that depend on ``changed``.

        ``hashes``: of all tensors after the swap.
        """
        started = time.monotonic()
        if files:
            self._tensor_hashes.update(dict.fromkeys(files, _UNKNOWN))
            await self._call("mor_load", [[name, str(file)] for name, file in files.items()], self._noise_seed)
            self._tensor_hashes = hashes
        loaded = time.monotonic()
        await self._with_timeout("emptying the caches", self._reset_caches(changed))
        log.debug("swapped", tensors=len(files), load_s=loaded - started, reset_s=time.monotonic() - loaded)

    async def _reset_caches(self, changed: Iterable[str]) -> None:
        """Empty the caches that depend on tensors that changed."""
        await self._reset_prefix_cache()
        if not self._vision_tensors.isdisjoint(changed):
            await self._engine.reset_encoder_cache()

    async def _reset_prefix_cache(self) -> None:
        """Drop attention keys and values of the old weights, those of paused responses included.

        vLLM computes the latter again from the responses' tokens when these continue.
        """
        for _ in range(_CACHE_RESET_ATTEMPTS):
            if await self._engine.reset_prefix_cache(reset_running_requests=self._paused):
                return
            await asyncio.sleep(_CACHE_RESET_INTERVAL_S)
        raise SwapFailed(
            "vLLM kept cached prefixes of the old weights, none may stay; check that no response is being sampled"
        )

    async def _use_adapter(self, weights: PreparedWeights | None) -> None:
        from vllm.lora.request import LoRARequest

        if weights is None:
            self._adapter = None
            return
        if not self._settings.lora_max_rank:
            raise Invalid("a LoRA adapter was published, this engine loads none; set MOR_LORA_MAX_RANK to its rank")
        assert weights.folder is not None, "adapters are always files"
        modules = sorted({_adapted_module(name) for name in weights.tensors})
        outside = (await self._call("mor_vision_tensors", [f"{module}.weight" for module in modules]))[0]
        if outside:
            raise Invalid(
                f"the adapter changes {outside[0]!r}, outside the language model, where vLLM applies none;"
                " train language-model modules only, or publish full weights"
            )
        self._adapter = LoRARequest("policy", _ADAPTER_ID, str(weights.folder.resolve()))
        request = LoRARequest("policy", _ADAPTER_ID, str(weights.folder.resolve()), load_inplace=True)
        if not await self._with_timeout("loading the adapter", self._engine.add_lora(request)):
            raise SwapFailed("vLLM did not load the adapter; see its log for the reason")

    async def read_back(self, names: list[str] | None = None) -> ReadBack:
        """Compare the tensors in ``names``, all by default, and the adapter if there is one.

        A swap gives the tensors it touched, as the others have been compared before.
        """
        full = self._loaded.tensors if self._loaded is not None and self._loaded.kind == "full" else {}
        files = {name: (full.get(name) or source).file for name, source in self._base.tensors.items()}
        wanted = [name for name in files if name not in self._broadcast_tensors] if names is None else names
        reports = await self._call("mor_verify", [[name, str(files[name])] for name in wanted], self._noise_seed)
        mismatched = tuple(name for report in reports for name in report["mismatched"])
        if mismatched:
            self._tensor_hashes.update(dict.fromkeys(wanted, _UNKNOWN))
            raise SwapFailed(
                f"{len(mismatched)} modules do not compute with the weights they were given, the first of them"
                f" {mismatched[0]}"
            )
        verified = len(reports[0]["verified"]) + len(files) - len(wanted)
        loaded = self._loaded
        tensors = len(files)
        if loaded is not None and loaded.kind == "lora":
            verified += await self._verify_adapter(loaded)
            tensors += len(loaded.tensors)
        return ReadBack(
            run=loaded.run if loaded else None,
            version=loaded.version if loaded else None,
            digest=self._digest(),
            verified=verified,
            unverified=tensors - verified,
            mismatched=mismatched,
        )

    async def _verify_adapter(self, weights: PreparedWeights) -> int:
        """Return the number of the adapter's tensors that the layers compute with."""
        assert weights.folder is not None
        reports = await self._call("mor_verify_adapter", str(weights.folder.resolve()), _ADAPTER_ID)
        mismatched = [name for report in reports for name in report["mismatched"]]
        if mismatched:
            raise SwapFailed(
                f"{len(mismatched)} layers do not compute with the adapter they were given, the first of them"
                f" {mismatched[0]}"
            )
        return len(reports[0]["verified"])

    def _digest(self) -> str:
        """Return the SHA-256 over the hashes of all tensors in the engine."""
        adapter = self._loaded.tensors if self._loaded is not None and self._loaded.kind == "lora" else {}
        return checkpoint_files.digest(
            {**self._tensor_hashes, **{name: source.sha256 for name, source in adapter.items()}}
        )

    async def _call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of ``WeightsExtension`` in every worker and return their results."""
        return list(await self._with_timeout(method, self._engine.collective_rpc(method, args=args)))

    async def _with_timeout(self, step: str, work: Awaitable[Result]) -> Result:
        """Await the engine's reply. A late reply leaves the engine in an unknown state, so it counts as failed."""
        limit = self._settings.swap_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError as error:
            self._failure = f"{step} took over {limit:g} s (MOR_SWAP_TIMEOUT_S)"
            raise SwapFailed(self._failure) from error
        except Exception as error:
            raise SwapFailed(f"{step}: {quote_failure(error)}") from error

    async def join_transfer_group(self, init_info: dict[str, Any]) -> None:
        """Join a trainer's group and leave an earlier one. Return when all members have joined."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._with_timeout("leaving a group", self._engine.shutdown_weight_transfer_engine())
        request = WeightTransferInitRequest(init_info=init_info)
        await self._with_timeout("joining a group", self._engine.init_weight_transfer_engine(request))

    async def begin_transfer(self) -> None:
        """Prepare for new tensors. Until ``end_transfer`` nothing is sampled and the engine holds no version."""
        self._hashes_before_transfer = self._tensor_hashes
        self._tensor_hashes = dict.fromkeys(self._tensor_hashes, _UNKNOWN)
        await self._call("mor_begin_transfer")

    async def receive_tensors(self, update_info: dict[str, Any]) -> None:
        """Receive the group's next broadcast, which ``update_info`` describes."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info=update_info)
        await self._with_timeout("receiving weights", self._engine.update_weights(request))

    async def end_transfer(self, run: str, version: int, hashes: Mapping[str, str]) -> tuple[PreparedWeights, ReadBack]:
        """Verify the received tensors against ``hashes``, their SHA-256 by name, and sample from them from now on.

        Raises:
            SwapFailed: other tensors were received, or the engine does not compute with them.
        """
        report = (await self._call("mor_end_transfer"))[0]
        if report["received"] != dict(hashes):
            wrong = sorted({name for name, _ in report["received"].items() ^ hashes.items()})
            raise SwapFailed(f"tensor {wrong[0]!r} was not received as it was sent, the first of {len(wrong)} such")
        if report["mismatched"]:
            raise SwapFailed(f"{report['mismatched'][0]} does not compute with the weights that were received")
        self._broadcast_tensors, self._adapter, self._noise_seed = frozenset(hashes), None, None
        await self._restore_base_tensors(hashes)
        self._loaded = PreparedWeights(run, version, "full", None, {}, self._digest())
        await self._with_timeout("emptying the caches", self._reset_caches(hashes))
        read_back = await self.read_back(names=[])
        await self._set_version_label(self._loaded)
        return self._loaded, read_back

    async def _restore_base_tensors(self, hashes: Mapping[str, str]) -> None:
        """Restore tensors that were not broadcast to the base checkpoint's, as the previous version may have others."""
        base = self._base.tensors
        wanted = {name: source.sha256 for name, source in base.items()} | dict(hashes)
        changed = [name for name in base if name not in hashes and self._hashes_before_transfer[name] != wanted[name]]
        files = {name: base[name].file for name in checkpoint_files.with_load_units(base, changed)}
        if not hashes.keys().isdisjoint(files):
            raise SwapFailed(
                f"{changed[0]!r} was not broadcast, but another tensor of its layer was; broadcast whole layers"
            )
        await self._swap(files, wanted, changed)
        self._tensor_hashes = wanted

    def mark_failed(self, reason: str) -> None:
        """Declare the engine failed, because its weights are in an unknown state; the service then restarts."""
        self._failure = reason

    async def close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            if engine.output_handler is not None:  # it would report the shutdown as a failure
                engine.output_handler.cancel()
                await asyncio.wait([engine.output_handler], timeout=_CLOSE_S)
            await asyncio.to_thread(engine.shutdown)
            engine.shutdown = _do_nothing  # vLLM's destructor calls it again, which fails at the interpreter's exit
        self._errors.close()


def _do_nothing(timeout: float | None = None) -> None:
    return


def _adapted_module(tensor: str) -> str:
    """Return the name of the module that a tensor of an adapter belongs to."""
    return tensor.removeprefix("base_model.model.").partition(".lora_")[0]


def _is_adaptable(tensor: str) -> bool:
    """Return whether this is, by its usual name, the weight of a linear map for which adapters are trained."""
    return ".layers." in tensor and tensor.endswith("_proj.weight") and ".experts." not in tensor


def _spans(output: Any) -> tuple[VersionSpan, ...]:
    if output.weight_versions is None:
        raise EngineError(
            "vLLM returned a response without weights versions; use the vLLM version that mor-rollout requires"
        )
    return tuple(
        VersionSpan(None if span.version == _BASE_LABEL else int(span.version), span.start)
        for span in output.weight_versions
    )


def _logprobs(output: Any) -> list[float]:
    return [float(step[token].logprob) for step, token in zip(output.logprobs, output.token_ids, strict=True)]


def _finish_reason(output: Any) -> Literal["stop", "length"]:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a response with {output.finish_reason!r}, expected 'stop' or 'length'")
    return "stop" if output.finish_reason == "stop" else "length"
