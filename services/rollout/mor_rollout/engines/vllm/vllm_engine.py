"""Engine on vLLM's asynchronous engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal

from mor_core.errors import Invalid
from mor_core.pixel_hash import PIXEL_FIELDS, pixel_sha256
from mor_core.vision import prompt_text
from mor_core.wire import image_hashes

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import (
    EngineError,
    EnginePrompt,
    ImageMismatch,
    PromptInput,
    SampledResponse,
    SampledToken,
    SampleParams,
    VersionSpan,
)
from mor_rollout.engines.vllm.engine_weights import BASE_LABEL, EngineWeights
from mor_rollout.engines.vllm.error_log import ErrorLog, describe_chain, stated
from mor_rollout.engines.vllm.native_libraries import check_native_libraries, import_failure, with_advice
from mor_rollout.engines.vllm.shared_memory import check_shared_memory
from mor_rollout.weights.base_checkpoint import BaseCheckpoint

_CLOSE_S = 5.0
"""Longest wait for vLLM's output task to end, seconds; a cancelled task needs far less."""


class VllmEngine(EngineWeights):
    """Engine on vLLM, in its own process.

    ``mor_rollout.engines.protocol.Engine`` documents the methods. Beside them it receives full weights that a trainer
    broadcasts: ``join_transfer_group``, ``begin_transfer``, ``receive_tensors``, ``end_transfer``.
    """

    name: Literal["vllm"] = "vllm"

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> None:
        super().__init__(settings, base)
        self._codec = codec
        self._errors = ErrorLog(settings.log_level, settings.log_format)

    @property
    def failure(self) -> str | None:
        if self._failure is None and self._engine is not None and self._engine.errored:
            cause = self._errors.fatal_error() or stated(str(self._engine.dead_error))
            self._failure = f"vLLM's engine died ({cause})"
        return self._failure

    async def start(self) -> None:
        check_native_libraries(self._settings)
        check_shared_memory(self._settings)
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                self._engine = await asyncio.to_thread(self._start)
                names = list(self._base.tensors)
                self._vision_tensors = frozenset((await self._call("mor_vision_tensors", names))[0])
                if dropped := (await self._call("mor_dropped_biases", names))[0]:
                    raise EngineError(
                        f"it computes without {len(dropped)} tensors of the checkpoint, such as {dropped[0]!r}; add the"
                        " field that states them to the checkpoint's config.json (in text_config, attention_bias: true"
                        " for those of attention), or set MOR_BACKEND=transformers"
                    )
                await self._set_version_label(None)
        except TimeoutError as error:
            raise EngineError(
                f"vLLM did not start in {self._settings.start_timeout_s:g} s (MOR_START_TIMEOUT_S);"
                " raise the limit for a large model"
            ) from error
        except ImportError as error:
            raise import_failure(error) from error
        except Exception as error:
            cause = self._errors.start_failure() or stated(with_advice(describe_chain(error)))
            raise EngineError(f"vLLM did not start: {cause}{self._advice(cause)}") from error

    def _advice(self, cause: str) -> str:
        """Return what to do where vLLM does not serve this family, or not with adapters."""
        from vllm.model_executor.models import ModelRegistry

        if "MOR_BACKEND" in cause:
            return ""
        if "does not support LoRA" in cause:
            return "; set MOR_LORA_MAX_RANK=0 and train all weights, or set MOR_BACKEND=transformers"
        if self._base.architecture not in ModelRegistry.get_supported_archs():
            return f"; vLLM has no code of its own for {self._base.architecture}: set MOR_BACKEND=transformers"
        return ""

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
        inputs, token_ids, image_tokens, pixels = await self._codec.encode_in_time(prompt)
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
        limit = self._settings.encode_timeout_s
        try:
            async with asyncio.timeout(limit):
                (rendered,) = await renderer.render_cmpl_async([request], without_special)
        except TimeoutError as error:
            raise Invalid(f"vLLM did not encode the prompt within {limit:g} s (MOR_ENCODE_TIMEOUT_S)") from error
        engine_token_ids = tuple(rendered["prompt_token_ids"])
        engine_pixels = pixel_sha256(
            *(
                {field: item[field].data for field in PIXEL_FIELDS if field in item}
                for item in rendered.get("mm_kwargs", {}).get("image", ())
            )
        )
        wanted_pixels = pixel_sha256(_with_pixels_of(inputs, self._engine.vllm_config.model_config.dtype))
        if engine_token_ids != token_ids or engine_pixels != wanted_pixels:
            raise ImageMismatch(
                f"vLLM made {len(engine_token_ids)} prompt tokens and pixels {str(engine_pixels)[:12]}, the processor"
                f" made {len(token_ids)} and {str(wanted_pixels)[:12]}; the two must use the same transformers version"
                " and processor files"
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


def _spans(output: Any) -> tuple[VersionSpan, ...]:
    if output.weight_versions is None:
        raise EngineError(
            "vLLM returned a response without weights versions; use the vLLM version that mor-rollout requires"
        )
    return tuple(
        VersionSpan(None if span.version == BASE_LABEL else int(span.version), span.start)
        for span in output.weight_versions
    )


def _with_pixels_of(inputs: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return a processor's output with pixels as vLLM gives them to a model that computes in ``dtype``."""
    return {**inputs} | {field: inputs[field].to(dtype) for field in PIXEL_FIELDS if field in inputs}


def _logprobs(output: Any) -> list[float]:
    return [float(step[token].logprob) for step, token in zip(output.logprobs, output.token_ids, strict=True)]


def _finish_reason(output: Any) -> Literal["stop", "length"]:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a response with {output.finish_reason!r}, expected 'stop' or 'length'")
    return "stop" if output.finish_reason == "stop" else "length"
