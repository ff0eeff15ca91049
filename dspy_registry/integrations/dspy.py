"""Usage statistics from a running DSPy program, through DSPy's own callbacks.

    dspy.configure(callbacks=[RegistryCallback(path)])

Every call of a module is reported under the registry name of the module, every `compile` of an optimizer under the
name of the optimizer. Duration, tokens and cost of a call include those of the calls inside it, which are reported too.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from dspy_registry.integrations.class_names import class_names
from dspy_registry.writer.client.reporter import UsageReporter

_MAX_OPEN: Final = 100_000
_HISTORY_SEARCHED: Final = 32
_MAX_DEPTH: Final = 4
_MAX_ITEMS: Final = 1_000

_log = logging.getLogger("dspy_registry")
Hook = TypeVar("Hook", bound=Callable[..., None])
Spent = tuple[int, int, "float | None"]
"""One call of a language model: tokens in, tokens out, US dollars."""


def _harmless(hook: Hook) -> Hook:
    """Log every error of a hook instead of raising it into the program."""

    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            _log.debug("a call was not reported", exc_info=True)

    return guarded  # type: ignore[return-value]


class _Call:
    """A call that has begun. `names` are those of a module or optimizer; None for a call of anything else."""

    __slots__ = ("instance", "names", "parent", "size", "spent", "started")

    def __init__(self, parent: _Call | None, names: tuple[str, ...] | None = None, size: int | None = None) -> None:
        self.parent = parent
        self.names = names
        self.size = size
        self.instance: Any = None
        self.spent: list[Spent] = []  # one entry per LM call inside; appending needs no lock
        self.started = time.perf_counter()


class RegistryCallback(BaseCallback):  # type: ignore[misc]
    """Reports the module calls of a program to the writer daemon of the registry in `path`.

    `path` None means $DSPY_REGISTRY, else the user's data directory. `reporter` is one to share; with it, `path` is
    not used. The attribute `reporter` is the one in use: `reporter.flush(seconds)` sends what waits. No hook waits
    for the daemon or raises into the program. The callback works in forked children, and copies share its reporter.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, reporter: UsageReporter | None = None) -> None:
        self.reporter = reporter if reporter is not None else UsageReporter(path)
        self._open: dict[str, _Call] = {}
        self._names: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"RegistryCallback({str(self.reporter.path)!r})"

    # DSPy copies callbacks together with the object they are attached to. A copy uses the same reporter.

    def __copy__(self) -> RegistryCallback:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RegistryCallback:
        return self

    def __reduce__(self) -> tuple[type[RegistryCallback], tuple[str]]:
        return type(self), (str(self.reporter.path),)

    # Modules and optimizers

    @_harmless
    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a call of a module has begun."""
        self._begin(call_id, _Call(self._parent(), self._names_of(instance), _characters(inputs)))

    @_harmless
    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Report the call, which has returned or raised."""
        self._end(call_id, outputs, exception)

    @_harmless
    def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that an optimizer has begun to compile."""
        self._begin(call_id, _Call(self._parent(), self._names_of(instance)))

    @_harmless
    def on_compile_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Report that the optimizer has finished or failed."""
        self._end(call_id, None, exception)

    # Language models: their cost counts for every call around them

    @_harmless
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a call of a language model has begun."""
        call = _Call(self._parent())
        call.instance = instance
        self._begin(call_id, call)

    @_harmless
    def on_lm_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Add tokens and cost to every call around this one."""
        call = self._open.pop(call_id, None)
        spent = _spent(call.instance, outputs) if call is not None else None
        while spent is not None and call is not None:
            call.spent.append(spent)
            call = call.parent

    # Calls that only connect an inner call to an outer one

    @_harmless
    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a tool has begun; it may call modules."""
        self._begin(call_id, _Call(self._parent()))

    @_harmless
    def on_tool_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Note that the tool has returned or raised."""
        self._open.pop(call_id, None)

    on_evaluate_start = on_tool_start
    on_evaluate_end = on_tool_end
    on_interpreter_execute_start = on_tool_start
    on_interpreter_execute_end = on_tool_end
    on_interpreter_tool_call_start = on_tool_start
    on_interpreter_tool_call_end = on_tool_end

    # Open calls

    def _parent(self) -> _Call | None:
        return self._open.get(ACTIVE_CALL_ID.get())

    def _begin(self, call_id: str, call: _Call) -> None:
        if len(self._open) >= _MAX_OPEN:  # calls that never ended
            self._open.clear()
        self._open[call_id] = call

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None) -> None:
        ended = time.perf_counter()
        call = self._open.pop(call_id, None)
        if call is None or call.names is None:
            return
        duration = (ended - call.started) * 1000
        tokens_in, tokens_out = _tracked(outputs) or _sum_of_tokens(call.spent)
        prices = [price for _, _, price in call.spent if price is not None]
        cost = sum(prices) if prices else None
        self.reporter.record(call.names, duration, exception is None, call.size, tokens_in, tokens_out, cost)

    def _names_of(self, instance: Any) -> tuple[str, ...]:
        cls = type(instance)
        names = self._names.get(cls)
        if names is None:
            names = self._names[cls] = class_names(cls)
        return names


def _tracked(outputs: Any) -> tuple[int, int] | None:
    """Tokens in and out that DSPy's `track_usage` put on the prediction of an outermost call; else None."""
    get_usage = getattr(outputs, "get_lm_usage", None)
    usage = get_usage() if callable(get_usage) else None
    if not usage:
        return None
    return _tokens(usage.values())


def _tokens(usages: Any) -> tuple[int, int]:
    used = [usage for usage in usages if isinstance(usage, dict)]
    return (
        sum(usage.get("prompt_tokens") or usage.get("input_tokens") or 0 for usage in used),
        sum(usage.get("completion_tokens") or usage.get("output_tokens") or 0 for usage in used),
    )


def _sum_of_tokens(spent: list[Spent]) -> tuple[int, int]:
    return sum(tokens for tokens, _, _ in spent), sum(tokens for _, tokens, _ in spent)


def _spent(lm: Any, outputs: Any) -> Spent | None:
    """Tokens in and out, and US dollars, of the LM call that returned `outputs`; None when DSPy kept no record.

    An answer from DSPy's cache has an entry in the history without tokens: it cost nothing.
    """
    for entry in reversed(lm.history[-_HISTORY_SEARCHED:]):
        if outputs is not None and (entry.get("outputs") is outputs or entry.get("response") is outputs):
            usage = entry.get("usage")
            if not usage or getattr(entry.get("response"), "cache_hit", False):
                return None
            return (*_tokens([usage]), entry.get("cost"))
    return None


def _characters(value: Any, depth: int = 0) -> int:
    """Characters of all texts in the input of a call."""
    if isinstance(value, str):
        return len(value)
    if depth < _MAX_DEPTH and isinstance(value, dict):
        value = list(value.values())
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return sum(_characters(item, depth + 1) for item in value[:_MAX_ITEMS])
    return 0
