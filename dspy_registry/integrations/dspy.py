"""Usage statistics from a running DSPy program, through DSPy's own callbacks.

    dspy.configure(callbacks=[RegistryCallback(path)])

Every call of a module is reported under the registry name of the module, every `compile` of an optimizer under the
name of the optimizer. Duration, tokens and cost of a call include those of the calls inside it, which are reported too.
A call is counted whatever is wrong with its input, its tokens or its name.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from dspy_registry.integrations.extras import needing

with needing("dspy"):
    from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from dspy_registry.integrations.class_names import NamesOf
from dspy_registry.integrations.declare import module
from dspy_registry.integrations.input_size import input_characters
from dspy_registry.integrations.lm_usage import (
    NOTHING,
    Spent,
    UsageSource,
    total,
    tracked_tokens,
    will_be_tracked,
)
from dspy_registry.integrations.publish import publish
from dspy_registry.integrations.routed import Routed
from dspy_registry.integrations.unseen import Unseen
from dspy_registry.registry_store.classify import kind_of
from dspy_registry.registry_store.retry_after import retry_after_of
from dspy_registry.router.under_way import CallUnderWay, under_way
from dspy_registry.writer.client.reporter import UsageReporter

__all__ = ["RegistryCallback", "Routed", "module", "publish"]

_MAX_OPEN: Final = 100_000
_SEARCHED: Final = 16

_log = logging.getLogger("dspy_registry")
Hook = TypeVar("Hook", bound=Callable[..., None])
Result = TypeVar("Result")


def _harmless(hook: Hook) -> Hook:
    """Log every error of a hook instead of raising it into the program."""

    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            _log.debug("a call was not reported", exc_info=True)

    return guarded  # type: ignore[return-value]


def _attempt(part: Callable[..., Result], *arguments: Any, otherwise: Result) -> Result:
    """What a part of a report is; `otherwise` when finding it out fails: the call is counted without it."""
    try:
        return part(*arguments)
    except Exception:
        _log.debug("a call is reported without a part of what is known of it", exc_info=True)
        return otherwise


class _Call:
    """A call that has begun. `names` are those of a module or optimizer; None for a call of anything else."""

    __slots__ = ("instance", "is_tracked", "names", "parent", "routed", "size", "spent", "started", "tracked_before")

    def __init__(self, parent: _Call | None, instance: Any = None, names: tuple[str, ...] | None = None) -> None:
        self.parent = parent
        self.instance = instance
        self.names = names
        self.routed: CallUnderWay | None = None  # the router's attempt that this is: the router reports it
        self.size: int | None = None
        self.is_tracked = False
        self.tracked_before = 0
        self.spent: list[Spent] = []  # one entry per LM call inside; appending needs no lock
        self.started = time.monotonic()


def _routed(call: _Call) -> CallUnderWay | None:
    """The router's attempt that this call belongs to; None: no router made this call."""
    attempt = under_way.get()
    if attempt is None or call.names is None or not attempt.claim(call.instance, call.names):
        return None
    return attempt


class RegistryCallback(BaseCallback):  # type: ignore[misc]
    """Reports the module calls of a program to the writer daemon of the registry in `path`.

    `path` None means $DSPY_REGISTRY, else the user's data directory. `reporter` is one to share; with it, `path` is
    not used. The attribute `reporter` is the one in use: `reporter.flush(seconds)` sends what waits. No hook waits
    for the daemon or raises into the program. The callback works in forked children, and copies share its reporter.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, reporter: UsageReporter | None = None) -> None:
        self.reporter = reporter if reporter is not None else UsageReporter(path)
        self._open: dict[str, _Call] = {}
        self._names = NamesOf()
        self._usage = UsageSource()
        self._unseen = Unseen(__file__)

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
        if type(instance) is Routed:  # only connects: its attempts are calls of the modules that it calls
            self._begin(call_id, _Call(self._parent()))
            return
        call = _Call(self._parent(), instance, self._names.of(instance))
        call.routed = _routed(call)
        self._begin(call_id, call)
        call.is_tracked = _attempt(will_be_tracked, otherwise=False)
        call.size = input_characters(inputs)
        self._unseen.look(instance, call.parent is not None, self._running)
        call.started = time.monotonic()

    @_harmless
    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Report the call. `outputs` None: it raised, or returned None. `exception` None: it returned."""
        self._end(call_id, outputs, exception)

    @_harmless
    def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that an optimizer has begun to compile."""
        self._begin(call_id, _Call(self._parent(), instance, self._names.of(instance)))

    @_harmless
    def on_compile_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Report that the optimizer has ended. `exception` None: it has finished. `outputs` does not count."""
        self._end(call_id, None, exception)

    # Language models: their cost counts for every call around them

    @_harmless
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a call of a language model has begun."""
        call = _Call(self._parent(), instance)
        self._begin(call_id, call)
        call.tracked_before = _attempt(self._usage.begin, instance, otherwise=0)

    @_harmless
    def on_lm_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Add tokens and cost to every call around this one. `outputs` None: it raised; only tracked tokens count."""
        call = self._open.pop(call_id, None)
        if call is None:
            return
        spent = self._usage.end(call.instance, outputs, call.tracked_before)
        around = call.parent
        while spent != NOTHING and around is not None:
            around.spent.append(spent)
            around = around.parent

    # Calls that only connect an inner call to an outer one

    @_harmless
    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a tool has begun; it may call modules."""
        self._begin(call_id, _Call(self._parent()))

    @_harmless
    def on_tool_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Note that the tool has returned or raised. `outputs` and `exception` do not count."""
        self._open.pop(call_id, None)

    on_evaluate_start = on_tool_start
    on_evaluate_end = on_tool_end
    on_interpreter_execute_start = on_tool_start
    on_interpreter_execute_end = on_tool_end
    on_interpreter_tool_call_start = on_tool_start
    on_interpreter_tool_call_end = on_tool_end
    on_interpreter_startup_start = on_tool_start
    on_interpreter_startup_end = on_tool_end
    on_interpreter_shutdown_start = on_tool_start
    on_interpreter_shutdown_end = on_tool_end
    on_adapter_format_start = on_tool_start
    on_adapter_format_end = on_tool_end
    on_adapter_parse_start = on_tool_start  # an adapter may ask a second model while it parses
    on_adapter_parse_end = on_tool_end

    # Open calls

    def _parent(self) -> _Call | None:
        return self._open.get(ACTIVE_CALL_ID.get())

    def _begin(self, call_id: str, call: _Call) -> None:
        if len(self._open) >= _MAX_OPEN:  # calls that never ended
            self._open.clear()
        self._open[call_id] = call

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None) -> None:
        ended = time.monotonic()
        call = self._open.pop(call_id, None)
        if call is None or call.names is None:
            return
        spent = total(call.spent)
        tracked = _attempt(tracked_tokens, outputs, otherwise=(0, 0)) if call.is_tracked else (0, 0)
        if call.routed is not None:
            call.routed.tokens_in = max(spent.tokens_in, tracked[0])
            call.routed.tokens_out = max(spent.tokens_out, tracked[1])
            call.routed.cost_usd = spent.dollars
            return
        self.reporter.record(
            call.names,
            (ended - call.started) * 1000,
            exception is None,
            call.size,
            max(spent.tokens_in, tracked[0]),
            max(spent.tokens_out, tracked[1]),
            spent.dollars,
            error=None if exception is None else kind_of(exception),
            began=call.started,
            retry_after=None if exception is None else retry_after_of(exception, time.time()),
        )

    def _running(self) -> Iterator[Any]:
        """The modules of some calls under way."""
        for call in itertools.islice(self._open.values(), _SEARCHED):
            if call.names is not None:
                yield call.instance
