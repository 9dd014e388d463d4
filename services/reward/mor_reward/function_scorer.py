"""A client's Python function as a reward model: served, not trained."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import chain, describe_failure, quote_failure
from mor_core.images import sha256
from mor_core.timed_calls import TimedCalls

from mor_reward.backbones import Example
from mor_reward.given_paths import function_file
from mor_reward.group_scorer import BrokenAnswer, ModelAway

Scores = Sequence[float | None]
Function = Callable[..., Scores | Awaitable[Scores]]

_OUTAGES = (ConnectionError, TimeoutError, httpx.TransportError)
"""Exceptions of a function by which it says that what it calls is away. Libraries such as ``requests`` and ``urllib``
raise their own from one of these."""
_WANTED = "return a list with one float for each response, and None where there is none"


class FunctionScorer:
    """Scorer that calls ``function(messages, responses, images)`` once for each group, several at a time.

    ``messages`` are dictionaries in the OpenAI chat format, ``images`` are RGB ``PIL.Image`` objects in the order of
    the messages; a function of two arguments gets no pictures. It returns one float for each response, or ``None``
    where it cannot judge one. An ``async def`` runs in an event loop of its own, another function in threads. A
    ``ConnectionError``, ``TimeoutError`` or ``httpx.TransportError`` is an outage, also as the cause of another
    exception: the service answers 503.
    Under limits of answers a response keeps its first score, so that the function must judge each response by itself.
    """

    def __init__(self, reference: str, *, at_once: int, timeout_s: float) -> None:
        """``reference`` has the form ``file.py:name``; ``at_once``: calls at a time; ``timeout_s``: longest call.

        Raises:
            Invalid: no such file or function, or the file cannot be imported.
        """
        self._function = _load(reference)
        self.uses_pictures = _takes_pictures(self._function, reference)
        self._version = sha256(function_file(reference).read_bytes())[:16]
        self._timeout_s = timeout_s
        self._calls = TimedCalls("a call of the function", timeout_s, "MOR_CALL_TIMEOUT_S", at_once=at_once)
        self._places = asyncio.Semaphore(at_once)
        self._loop = _FunctionLoop() if _is_asynchronous(self._function) else None

    @property
    def version(self) -> str:
        """Hash of the function's file."""
        return self._version

    def context(self, group: Sequence[Example]) -> str:
        """See ``GroupScorer.context``: a function gets no objective, and judges each response by itself."""
        return ""

    async def score(self, group: Sequence[Example], *, caller: str, deadline: float) -> Scores:
        """See ``GroupScorer.score``."""
        within_s = min(deadline - time.monotonic(), self._timeout_s)
        limit = asyncio.timeout(within_s)
        try:
            async with limit:
                values = await self._call(group)
        except Unavailable as error:  # too many calls are stuck
            raise ModelAway(str(error)) from None
        except Exception as error:
            if limit.expired():
                raise ModelAway(f"the function did not return within {within_s:.1f} s (MOR_CALL_TIMEOUT_S)") from None
            if (outage := next((one for one, _ in chain(error) if isinstance(one, _OUTAGES)), None)) is not None:
                raise ModelAway(f"the function reports an outage: {describe_failure(outage)}") from error
            raise
        if len(values) != len(group):
            found = f"over {len(group)}" if len(values) > len(group) else len(values)
            raise BrokenAnswer(f"the function returned {found} scores for {len(group)} responses; {_WANTED}")
        try:
            return [None if value is None else float(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise BrokenAnswer(f"the function returned what is no number for a response; {_WANTED}") from error

    async def problem(self) -> str | None:
        """Return why the function is not called any more; ``None`` while it is."""
        return self._calls.problem

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.close()

    async def _call(self, group: Sequence[Example]) -> list[Any]:
        if self._loop is None:
            return await self._calls.run_async(self._called, group)
        arguments = await asyncio.to_thread(self._arguments, group)
        async with self._places:
            return await self._loop.run(self._function, arguments)

    def _called(self, group: Sequence[Example]) -> list[Any]:
        return _values(self._function(*self._arguments(group)), len(group))

    def _arguments(self, group: Sequence[Example]) -> list[Any]:
        first = group[0]
        messages = [message.model_dump(mode="json") for message in first.messages]
        pictures = [[picture.decode() for picture in first.pictures]] if self.uses_pictures else []
        return [messages, [example.response for example in group], *pictures]


class _FunctionLoop:
    """Event loop of asynchronous functions on a thread of its own: one that blocks it delays no other request."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="asynchronous function", daemon=True).start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def run(self, function: Function, arguments: Sequence[Any]) -> list[Any]:
        """Call an asynchronous function and wait for it; cancelled meanwhile, its call is cancelled too."""

        async def called() -> list[Any]:
            count = len(arguments[1])  # before the function, which may change its list
            answer: Any = function(*arguments)
            try:
                return _values(await answer, count)
            except (Exception, asyncio.CancelledError, GeneratorExit):  # the last where the loop has ended
                raise
            except BaseException as error:  # SystemExit would end the loop
                raise BrokenAnswer(f"the function raised {type(error).__name__}") from error

        future = asyncio.run_coroutine_threadsafe(called(), self._loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise BrokenAnswer("the function's call was cancelled, though nobody asked for it") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """End the loop; calls that are in work end with it."""
        self._loop.call_soon_threadsafe(self._loop.stop)


def _is_asynchronous(function: Function) -> bool:
    """Return whether a call of a function, or of an object that is called like one, is a coroutine."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _values(answer: Any, count: int) -> list[Any]:
    """Return what a function returned for ``count`` responses, and one value more where there are more.

    Raises:
        BrokenAnswer: it is no list of values.
    """
    if inspect.iscoroutine(answer):
        answer.close()
        raise BrokenAnswer("the function returned a coroutine; write it as 'async def'")
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        raise BrokenAnswer(f"the function returned {type(answer).__name__}; {_WANTED}")
    return [*itertools.islice(answer, count + 1)]


def _takes_pictures(function: Function, reference: str) -> bool:
    """Return whether a function takes pictures besides messages and responses.

    Raises:
        Invalid: it takes neither two nor three arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions in C
        return True
    for wanted in (3, 2):
        try:
            signature.bind(*[None] * wanted)
        except TypeError:
            continue
        return wanted == 3
    raise Invalid(f"--function {reference!r}: it takes {signature}; write it as f(messages, responses, images)")


def _load(reference: str) -> Function:
    path, name = function_file(reference), reference.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"mor_reward_function_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise Invalid(
            f"--function {reference!r}: importing {path} ended the process; keep scripts out of it"
        ) from error
    except Exception as error:  # the client's file may raise anything on import
        raise Invalid(f"--function {reference!r}: importing {path} failed: {quote_failure(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise Invalid(f"--function {reference!r}: {path} has no function {name!r}; name one that it defines")
    loaded: Function = function
    return loaded
