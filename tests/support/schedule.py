"""A schedule of commits that every process can compute for itself, and what the registry is after each of them.

The value of a module (its estimated duration) is the number of the commit that last touched it, so that one read tells
which commits it can have been made between. `verify` checks a reader's recorded history against it afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store.names import last_part, snake_case

WORDS = ("alpha", "beta", "gamma", "delta")
CATEGORIES = ("one", "two")
NAMES = ("dspy.Alpha", "dspy.BetaTwo", "acme.Alpha", "acme.Gamma", "acme.deep.Delta", "other.Gamma", "x.Y")
LONG_NAMES = tuple(f"bulk.{'x' * 200}.M{number}" for number in range(320))  # their commit is announced as `everything`
ALIASES = ("first", "second")

Event = list[Any]  # acknowledged before, question, answer, started after


class State:
    """The registry after one commit."""

    def __init__(self, modules: dict[str, ModuleInfo], aliases: dict[str, str], implied: dict[str, str]) -> None:
        self.modules = modules
        self.aliases = aliases
        self.implied = implied
        self._answers: dict[str, Any] = {}

    def answer(self, question: list[Any]) -> Any:
        """What a reader must answer in this state."""
        key = repr(question)
        if key not in self._answers:
            self._answers[key] = self._answer(*question)
        return self._answers[key]

    def _answer(self, kind: str, argument: Any) -> Any:
        if kind == "get":
            name = self._resolve(argument)
            return None if name is None else self.modules[name].estimated_duration
        if kind == "len":
            return len(self.modules)
        return [info.name for info in self.modules.values() if self._fits(info, kind, argument)]

    def _fits(self, info: ModuleInfo, kind: str, argument: Any) -> bool:
        if kind == "list":
            return True
        if kind == "category":
            return info.category == argument
        has = {*info.capabilities, *(self.implied[word] for word in info.capabilities if word in self.implied)}
        if kind == "capability":
            return argument in has
        words, category, native = argument
        return has.issuperset(words) and info.category == category and info.native_available == native

    def _resolve(self, asked: str) -> str | None:
        if asked in self.modules:
            return asked
        if asked in self.aliases:
            return self.aliases[asked]
        fits = [name for name in self.modules if last_part(name) == asked]
        if not fits and asked == snake_case(asked):
            fits = [name for name in self.modules if snake_case(last_part(name)) == asked]
        at_home = [name for name in fits if name.startswith("dspy.") and name.count(".") == 1]
        fits = at_home if len(at_home) == 1 else fits
        return fits[0] if len(fits) == 1 else None


class Schedule:
    """`commits` numbered from 1; `states[n]` is the registry after commit n. The core modules are gone in state 0."""

    def __init__(self, seed: int, commits: int) -> None:
        self._random = random.Random(seed)
        self.commits: list[list[tuple[Any, ...]]] = [[]]
        self.states = [State({}, {}, {})]
        for number in range(1, commits + 1):
            self._next(number)

    def _next(self, number: int) -> None:
        last = self.states[-1]
        state = State(dict(last.modules), dict(last.aliases), dict(last.implied))
        operations = list(self._operations(state, number))
        self.commits.append(operations)
        self.states.append(state)

    def _operations(self, state: State, number: int) -> Iterable[tuple[Any, ...]]:
        chance = self._random.random()
        standing = [name for name in state.modules if name in NAMES]
        if chance < 0.04:
            yield from (self._register(state, name, number) for name in LONG_NAMES)
        elif chance < 0.12 and standing:
            yield self._unregister(state, self._random.choice(standing))
        elif chance < 0.2 and standing:
            yield from self._alias(state, self._random.choice(ALIASES), self._random.choice(standing))
        elif chance < 0.26:
            word, implied = self._random.sample(WORDS, 2)
            state.implied = {word: implied}
            yield "implications", state.implied
            yield self._register(state, self._random.choice(NAMES), number)
        else:
            for name in self._random.sample(NAMES, self._random.choice((1, 1, 1, 2, 4))):
                yield self._register(state, name, number)

    def _register(self, state: State, name: str, number: int) -> tuple[Any, ...]:
        info = ModuleInfo(
            name,
            category=self._random.choice(CATEGORIES),
            capabilities=tuple(self._random.sample(WORDS, self._random.randrange(3))),
            native_available=self._random.random() < 0.5,
            estimated_duration=number,
        )
        state.modules[name] = info
        return "register", info

    def _unregister(self, state: State, name: str) -> tuple[Any, ...]:
        del state.modules[name]
        state.aliases = {alias: meant for alias, meant in state.aliases.items() if meant != name}
        return "unregister", name

    def _alias(self, state: State, alias: str, name: str) -> Iterable[tuple[Any, ...]]:
        if state.aliases.get(alias) == name:
            del state.aliases[alias]
            yield "remove_alias", alias
        else:
            state.aliases[alias] = name
            yield "alias", alias, name

    def questions(self, seed: int) -> Iterable[list[Any]]:
        """Endless questions, each asked a few times so that cached answers are used."""
        chance = random.Random(seed)
        asked = (*NAMES, *ALIASES, "Alpha", "alpha", "beta_two", "Gamma", "gamma", "Delta", LONG_NAMES[7], "Missing")
        while True:
            kind = chance.choice(("get",) * 8 + ("capability",) * 3 + ("category", "find", "list", "len"))
            argument: Any = None
            if kind == "get":
                argument = chance.choice(asked)
            elif kind == "capability":
                argument = chance.choice(WORDS)
            elif kind == "category":
                argument = chance.choice(CATEGORIES)
            elif kind == "find":
                words = chance.sample(WORDS, chance.randrange(2))
                argument = [words, chance.choice(CATEGORIES), chance.random() < 0.5]
            for _ in range(chance.choice((1, 2, 5))):
                yield [kind, argument]


def prepare(writer: RegistryWriter) -> int:
    """Bring a new registry to state 0; its revision."""
    for name in list(dict.fromkeys(_core_names())):
        writer.unregister_module(name)
    return writer.revision


def _core_names() -> Iterable[str]:
    from dspy_registry.writer.core_modules import CORE_MODULES

    return (info.name for info in CORE_MODULES)


def commit(writer: RegistryWriter, operations: list[tuple[Any, ...]]) -> int:
    """Make one commit of the schedule; the revision."""

    def stage(draft: Any) -> None:
        for kind, *arguments in operations:
            if kind == "implications":
                draft.set_implications("client", {word: (implied,) for word, implied in arguments[0].items()})
            else:
                method = {"alias": "set_alias"}.get(kind, kind)
                getattr(draft, method)(*arguments)

    return writer.store.committer.commit(stage)


def ask(queries: Any, question: list[Any]) -> Any:
    """The answer of a registry or a snapshot, in the form of `State.answer`."""
    from dspy_registry import AmbiguousNameError, UnknownModuleError

    kind, argument = question
    if kind == "get":
        try:
            return queries.get_module(argument).estimated_duration
        except (UnknownModuleError, AmbiguousNameError):
            return None
    if kind == "len":
        return len(queries)
    if kind == "list":
        return list(queries)
    if kind == "category":
        return list(queries.find_by_category(argument))
    if kind == "capability":
        return list(queries.find_by_capability(argument))
    words, category, native = argument
    return list(queries.find(tuple(words), category=category, native=native))


def verify(states: list[State], history: list[Event]) -> str:
    """What is wrong with the history of one reader of these states; empty when nothing is.

    Each event must fit a state that is not older than what was acknowledged before it, nor than what the same reader
    has seen before, nor newer than what had been started when it ended. The earliest that fits leaves most room for
    those that follow, so that trying it alone is enough.
    """
    position = 0
    for index, (acknowledged, question, answer, started) in enumerate(history):
        earliest = max(position, int(acknowledged))
        if question[0] == "revision":
            fitting: int | None = answer if earliest <= answer <= started else None
        else:
            fitting = _earliest(states, question, answer, earliest, int(started))
        if fitting is None:
            bounds = f"{acknowledged} acknowledged, {started} started, seen up to {position}"
            return f"event {index}: {question} -> {answer}, {bounds}"
        position = fitting
    return ""


def _earliest(states: list[State], question: list[Any], answer: Any, first: int, last: int) -> int | None:
    for number in range(first, min(last, len(states) - 1) + 1):
        if states[number].answer(question) == answer:
            return number
    return None
