"""`Router`: calls the module that the registry chooses, and the next one if that fails."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from dspy_registry.integrations.input_size import input_characters
from dspy_registry.readers.asked import amount_problems
from dspy_registry.readers.programs import Programs
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.classify import kind_of
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.router.attempt import Result
from dspy_registry.router.calling import Calling, Given
from dspy_registry.router.course import ROUNDS, Course, Pause, Span, course
from dspy_registry.router.wanted import Wanted
from dspy_registry.writer.client.reporter import UsageReporter

Targets: TypeAlias = "Mapping[str, Any]"
"""What to call, by the name of the module that it is."""


def kept(targets: Targets) -> Targets:
    """A copy, but of `Programs` the object itself: it gives each program as it is at the time of a call."""
    return targets if isinstance(targets, Programs) else dict(targets)


class Router:
    """Calls one of several targets: the best by `Registry.route`, and the next one when an attempt fails.

    `targets` are callables by the name of the module that each is, or a `Programs`; they are called with the arguments
    by name.
    `reporter` reports each attempt; None: one for the registry's folder. `classify` gives the kind of outcome of an
    exception; None: by its type and status. `rounds` is how often all candidates are tried when a call has no
    deadline. Threads and tasks may share a router, and it works in forked children. Raises InvalidArgumentError.

    A synchronous target runs in another thread, in a copy of the caller's context, because that is the only way to
    stop waiting for it at its limit. A thread that runs too long is abandoned: see `abandoned`.
    """

    def __init__(
        self,
        registry: Registry,
        targets: Targets,
        reporter: UsageReporter | None = None,
        *,
        classify: Callable[[BaseException], str] | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        wrong = _target_problems(targets)
        if type(rounds) is not int or rounds < 1:
            wrong.append(f"rounds is {rounds!r}; it is a whole number, 1 or more")
        if wrong:
            raise InvalidArgumentError(f"{'; '.join(wrong)}.")
        self.registry = registry
        self.targets = kept(targets)
        self.reporter = reporter if reporter is not None else UsageReporter(registry.path)
        self._rounds = rounds
        self._calling = Calling(registry, self.reporter, classify or kind_of)
        self._chance = random.Random()

    def __repr__(self) -> str:
        return f"Router({self.registry!r}, targets={', '.join(self.targets) or 'none'})"

    @property
    def abandoned(self) -> int:
        """How many calls ran past their limit and have not ended yet. Each keeps its thread and its limits' places."""
        return self._calling.abandoned.count

    def call(
        self,
        capabilities: str | Iterable[str] | None = (),
        *,
        arguments: Mapping[str, Any] | None = None,
        names: str | Iterable[str] | None = None,
        input_size: int | None = None,
        deadline_ms: float | None = None,
        **asked: Any,
    ) -> Result:
        """Call the best target with these arguments, by name. `asked` are further arguments of `Registry.route`.

        A failed attempt goes to the next candidate at once. When all were tried, it waits 0.5 s, then twice as long
        each time, at most 8 s, and tries again: until `deadline_ms` milliseconds have passed for all of it, without a
        deadline `rounds` times. `names` narrows the targets. `input_size` is in characters; None: of all text in the
        arguments.

        Raises what an attempt raised if the request itself is wrong (kind `caller`), RouteFailedError with all
        attempts when none succeeded, LimitReachedError when no limit let an attempt begin, and
        ProgramRefusedError or NoProgramError when this process can have none of the programs. For the rest it raises
        what `Registry.route` raises, and InvalidArgumentError for a name without a target or a target that must be
        awaited.
        """
        given, steps = self._begin(self.targets, capabilities, arguments, asked, names, input_size, deadline_ms)
        return self._made(given, steps)

    async def acall(
        self,
        capabilities: str | Iterable[str] | None = (),
        *,
        arguments: Mapping[str, Any] | None = None,
        names: str | Iterable[str] | None = None,
        input_size: int | None = None,
        deadline_ms: float | None = None,
        **asked: Any,
    ) -> Result:
        """`call` for asyncio, with the same arguments and errors.

        A target that can be awaited becomes a task, which is cancelled when its time is over.
        """
        given, steps = self._begin(self.targets, capabilities, arguments, asked, names, input_size, deadline_ms)
        return await self._made_async(given, steps)

    def call_any(
        self,
        targets: Targets,
        capabilities: str | Iterable[str] | None,
        arguments: Mapping[str, Any] | None,
        **asked: Any,
    ) -> Result:
        """`call` with these targets in place of the router's own. Other arguments and errors are the same."""
        return self._made(*self._begin_any(targets, capabilities, arguments, asked))

    def _made(self, given: Given, steps: Course) -> Result:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            if type(step) is Pause:
                time.sleep(step.seconds)
                answer = None
            else:
                answer = self._calling.attempt(step, given)

    async def acall_any(
        self,
        targets: Targets,
        capabilities: str | Iterable[str] | None,
        arguments: Mapping[str, Any] | None,
        **asked: Any,
    ) -> Result:
        """`acall` with these targets in place of the router's own. Other arguments and errors are the same."""
        return await self._made_async(*self._begin_any(targets, capabilities, arguments, asked))

    async def _made_async(self, given: Given, steps: Course) -> Result:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            if type(step) is Pause:
                await asyncio.sleep(step.seconds)
                answer = None
            else:
                answer = await self._calling.attempt_async(step, given)

    def _begin_any(
        self,
        targets: Targets,
        capabilities: str | Iterable[str] | None,
        arguments: Mapping[str, Any] | None,
        asked: dict[str, Any],
    ) -> tuple[Given, Course]:
        chosen = asked.pop("names", None), asked.pop("input_size", None), asked.pop("deadline_ms", None)
        return self._begin(targets, capabilities, arguments, asked, *chosen)

    def _begin(
        self,
        targets: Targets,
        capabilities: str | Iterable[str] | None,
        arguments: Mapping[str, Any] | None,
        asked: dict[str, Any],
        names: str | Iterable[str] | None,
        characters: int | None,
        deadline_ms: float | None,
    ) -> tuple[Given, Course]:
        if arguments is not None or deadline_ms is not None:
            _check(arguments, deadline_ms)
        arguments = {} if arguments is None else arguments
        if characters is None:
            characters = input_characters(arguments) if arguments else 0
        wanted = Wanted(self.registry, targets, asked, deadline_ms)
        if asked or names is not None:
            wanted.narrow(names, asked.pop("label", None), asked.pop("key", None))
        asked["capabilities"], asked["input_size"] = capabilities, characters
        deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        steps = course(wanted.route, Span(time.monotonic, deadline, self._rounds), self._chance.random)
        return Given(wanted, arguments, characters), steps

    # A program of DSPy that holds a router is copied and pickled together with it.

    def __copy__(self) -> Router:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        return self

    def __reduce__(self) -> tuple[Callable[..., Router], tuple[Any, ...]]:
        classify = None if self._calling.classify is kind_of else self._calling.classify
        return _opened, (self.registry, self.targets, str(self.reporter.path), classify, self._rounds)


def _opened(registry: Registry, targets: Any, path: str, classify: Any, rounds: int) -> Router:
    return Router(registry, targets, UsageReporter(path), classify=classify, rounds=rounds)


def _target_problems(targets: object) -> list[str]:
    if isinstance(targets, Programs):  # looking at a program would build it
        return []
    if not isinstance(targets, Mapping):
        return [f"targets is of type {type(targets).__name__}; it is a mapping of names to what is called"]
    unnamed = [f"{name!r} is no name of a module" for name in targets if not isinstance(name, str) or not name]
    return [
        *unnamed,
        *(f"the target of {name!r} cannot be called" for name, each in targets.items() if not callable(each)),
    ]


def _check(arguments: object, deadline_ms: object) -> None:
    """Raises InvalidArgumentError, before an attempt could count against a target."""
    wrong = amount_problems("deadline_ms", deadline_ms)
    is_named = isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments)
    if arguments is not None and not is_named:
        wrong.append("arguments must be a mapping of names to values")
    if wrong:
        raise InvalidArgumentError(f"{'; '.join(wrong)}.")
