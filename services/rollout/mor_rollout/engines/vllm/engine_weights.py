"""Weights of vLLM's running engine: loading, adapters, broadcasts, and the proof that it computes with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import structlog
from mor_core.errors import Invalid
from mor_core.failures import quote_failure

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import ReadBack, SwapFailed
from mor_rollout.engines.self_test_noise import write_noise_adapter
from mor_rollout.weights import checkpoint_files
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import PreparedWeights

Result = TypeVar("Result")

BASE_LABEL = "base"
"""Version label of responses that the base checkpoint sampled."""
_ADAPTER_ID = 1
"""vLLM's number of the adapter; the engine holds one at a time."""
_UNKNOWN = "unknown"
"""Stands for the hash of a tensor whose values in the engine are not known."""
_CACHE_RESET_ATTEMPTS = 50
_CACHE_RESET_INTERVAL_S = 0.02
"""vLLM frees the blocks of a finished response one step later, so the cache can be emptied after a step or two; a
second covers the longest step on a CPU."""

log = structlog.get_logger(__name__)


class EngineWeights:
    """Weights of one engine. ``VllmEngine`` adds its start, its end and sampling."""

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint) -> None:
        self._settings = settings
        self._base = base
        self._engine: Any = None
        """vLLM's engine; ``None`` before the start."""
        self._adapter: Any = None
        self._loaded: PreparedWeights | None = None
        self._noise_seed: int | None = None
        self._tensor_hashes = {name: source.checksum for name, source in base.tensors.items()}
        """Checksum of each tensor in the engine, by the base checkpoint's names."""
        self._hashes_before_transfer = self._tensor_hashes
        self._broadcast_tensors: frozenset[str] = frozenset()
        """Tensors that came by broadcast and are in no file."""
        self._vision_tensors: frozenset[str] = frozenset(base.tensors)
        """Tensors on which encoder outputs may depend."""
        self._paused = False
        self._failure: str | None = None

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        if weights is not None and weights.folder is None:
            raise SwapFailed(
                f"version {weights.version} came by broadcast and is in no file, so it cannot be loaded again"
            )
        full = weights is not None and weights.kind == "full"
        target = {**self._base.tensors, **(weights.tensors if weights is not None and full else {})}
        changed = [name for name, source in target.items() if self._tensor_hashes[name] != source.checksum]
        files = {name: target[name].file for name in checkpoint_files.with_load_units(target, changed)}
        self._loaded, self._noise_seed, self._broadcast_tensors = weights, None, frozenset()
        await self._swap(files, {name: source.checksum for name, source in target.items()}, changed)
        await self._use_adapter(weights if not full else None)
        read_back = await self.read_back(names=list(files))
        await self._set_version_label(weights)
        return read_back

    async def _set_version_label(self, weights: PreparedWeights | None) -> None:
        """Make vLLM label the tokens it samples from now on with this version."""
        label = BASE_LABEL if weights is None else str(weights.version)
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
        """Return the SHA-256 over the checksums of all tensors in the engine."""
        adapter = self._loaded.tensors if self._loaded is not None and self._loaded.kind == "lora" else {}
        return checkpoint_files.digest(
            {**self._tensor_hashes, **{name: source.checksum for name, source in adapter.items()}}
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
        wanted = {name: source.checksum for name, source in base.items()} | dict(hashes)
        changed = [name for name in base if name not in hashes and self._hashes_before_transfer[name] != wanted[name]]
        files = {name: base[name].file for name in checkpoint_files.with_load_units(base, changed)}
        if not hashes.keys().isdisjoint(files):
            raise SwapFailed(
                f"{changed[0]!r} was not broadcast, but another tensor of its layer was; broadcast whole layers"
            )
        await self._swap(files, wanted, changed)
        self._tensor_hashes = wanted


def _adapted_module(tensor: str) -> str:
    """Return the name of the module that a tensor of an adapter belongs to."""
    return tensor.removeprefix("base_model.model.").partition(".lora_")[0]


def _is_adaptable(tensor: str) -> bool:
    """Return whether this is, by its usual name, the weight of a linear map for which adapters are trained."""
    return ".layers." in tensor and tensor.endswith("_proj.weight") and ".experts." not in tensor
