"""A real DSPy program, on a language model that needs no network, reported through the callback.

Run as `python dspy_program.py PATH SCENARIO`; prints what the scenario wants its test to know, as JSON.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import sys
from typing import Any

import dspy
from dspy.clients.engines.dummy_engine import DummyEngine
from dspy.lm15 import Usage
from dspy.utils import DummyLM

from dspy_registry.integrations.dspy import RegistryCallback
from tests.support.dspy_program_costs import COST, TOKENS_IN, TOKENS_OUT


class PricedLM(DummyLM):  # type: ignore[misc]
    """Answers at once, and says what it cost."""

    def __init__(self) -> None:
        super().__init__({"": {"answer": "yes", "reasoning": "so", "next_thought": "t"}})
        self._engine_spec = PricedEngine(self)
        self._async_engine_spec = AsyncPricedEngine(self)

    def update_history(self, entry: dict[str, Any]) -> None:
        entry["cost"] = COST
        super().update_history(entry)


class PricedEngine(DummyEngine):  # type: ignore[misc]
    """Answers that say how many tokens they took."""

    def _complete_messages(self, messages: Any) -> Any:
        response = super()._complete_messages(messages)
        usage = Usage(input_tokens=TOKENS_IN, output_tokens=TOKENS_OUT, total_tokens=TOKENS_IN + TOKENS_OUT)
        object.__setattr__(response, "usage", usage)
        return response


class AsyncPricedEngine:
    """The same, with a pause in which other tasks run."""

    def __init__(self, owner: PricedLM) -> None:
        self._sync = PricedEngine(owner)

    async def complete(self, request: Any) -> Any:
        await asyncio.sleep(0.001)  # lets the others run
        return self._sync.complete(request)

    async def complete_legacy(self, lm: Any, request: Any, **context: Any) -> Any:
        await asyncio.sleep(0.001)
        return self._sync.complete_legacy(lm, request, **context)

    async def aclose(self) -> None:
        pass


class Inner(dspy.Module):  # type: ignore[misc]
    """Fails where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        if question == "fail":
            raise ValueError("as asked")
        return self.predict(question=question)

    async def aforward(self, question: str) -> Any:
        if question == "fail":
            raise ValueError("as asked")
        return await self.predict.acall(question=question)


class Outer(dspy.Module):  # type: ignore[misc]
    """A module that calls another, or fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        self.inner(question=question)
        return self.think(question=question)

    async def aforward(self, question: str) -> Any:
        await asyncio.gather(self.inner.acall(question=question), self.inner.acall(question=question))
        return await self.think.acall(question=question)


class WithTool(dspy.Module):  # type: ignore[misc]
    """Calls a module from inside a tool."""

    def forward(self, question: str) -> Any:
        return dspy.Tool(lambda text: Inner()(question=text), name="ask", args={"text": {"type": "string"}})(
            text=question
        )


def attempt(program: Any, **inputs: str) -> str:
    """The answer, or what was raised."""
    try:
        return str(program(**inputs).answer)
    except ValueError as error:
        return str(error)


def nested() -> Any:
    """Inputs of three sizes, through two modules."""
    return [program(question="x" * size).get_lm_usage() for program in [Outer()] for size in (50, 5_000, 50_000)]


def fails() -> Any:
    """Two calls of three end with an error."""
    return [attempt(Outer(), question=question) for question in ("fail", "ok", "fail")]


def threads() -> Any:
    """Forty calls in eight threads."""
    pairs = [(Outer(), dspy.Example(question=f"{at}").with_inputs("question")) for at in range(40)]
    return len(dspy.Parallel(num_threads=8, disable_progress_bar=True)(pairs))


def nested_threads() -> Any:
    """A module that calls another in threads."""

    class Fan(dspy.Module):  # type: ignore[misc]
        def forward(self, question: str) -> Any:
            pairs = [(Inner(), {"question": question}) for _ in range(5)]
            dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
            return dspy.Prediction(answer="done")

    return attempt(Fan(), question="x")


def tasks() -> Any:
    """Twenty calls that overlap in one event loop; how many failed."""

    async def all_at_once() -> list[Any]:
        calls = [Outer().acall(question="fail" if at % 5 == 0 else "x") for at in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    return sum(isinstance(result, ValueError) for result in asyncio.run(all_at_once()))


def cancelled() -> Any:
    """A call that is given up while it waits."""

    class Waits(dspy.Module):  # type: ignore[misc]
        async def aforward(self, question: str) -> Any:
            await asyncio.sleep(3600)

    async def give_up() -> None:
        await asyncio.wait_for(Waits().acall(question="x"), 0.01)

    try:
        asyncio.run(give_up())
    except asyncio.TimeoutError:
        return "given up"
    return "?"


def tool() -> Any:
    """A module that is called by a tool of another."""
    return attempt(WithTool(), question="x")


def optimizer() -> Any:
    """A compilation by an optimizer."""
    examples = [dspy.Example(question=f"{at}", answer="yes").with_inputs("question") for at in range(3)]
    bootstrap = dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=1)
    return type(bootstrap.compile(Inner(), trainset=examples)).__name__


def evaluate() -> Any:
    """An evaluation of four examples."""
    examples = [dspy.Example(question=f"{at}", answer="yes").with_inputs("question") for at in range(4)]
    scored = dspy.Evaluate(devset=examples, metric=lambda *_: 1.0, num_threads=2, display_progress=False)(Inner())
    return scored.score


def copies() -> Any:
    """A callback that is copied, pickled, and attached to one module or model."""
    callback = dspy.settings.callbacks[0]
    assert copy.deepcopy(callback) is copy.copy(callback) is callback
    assert pickle.loads(pickle.dumps(callback)).reporter.path == callback.reporter.path
    dspy.configure(callbacks=[])
    own = dspy.Predict("question -> answer", callbacks=[callback])
    lm = copy.deepcopy(PricedLM().copy(callbacks=[callback]))
    with dspy.context(lm=lm):
        return [attempt(own, question="x"), attempt(copy.deepcopy(Inner()), question="x")]


def broken() -> Any:
    """Every part of the callback fails, and every value that it looks at."""

    class Hostile:
        path = "nowhere"

        def record(self, *arguments: Any) -> None:
            raise RuntimeError("broken")

    class Odd(dspy.Module):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            return Unhelpful()

    class Unhelpful:
        def get_lm_usage(self) -> Any:
            raise RuntimeError("broken")

    answers = [attempt(Outer(), question=question) for question in ("ok", "fail")]
    sound = dspy.settings.callbacks[0]
    for break_it in (
        lambda callback: setattr(callback, "reporter", Hostile()),
        lambda callback: setattr(callback, "_names", None),
        lambda callback: setattr(callback, "_open", None),
    ):
        callback = RegistryCallback(sound.reporter.path)
        break_it(callback)
        dspy.configure(callbacks=[callback])
        assert [attempt(Outer(), question=question) for question in ("ok", "fail")] == answers
    dspy.configure(callbacks=[sound])
    deep: list[Any] = []
    deep.append(deep)
    for value in (deep, {1: deep}, object(), "x" * 10, None):
        assert type(Odd()(value=value)).__name__ == "Unhelpful"
    return answers


SCENARIOS = (nested, fails, threads, nested_threads, tasks, cancelled, tool, optimizer, evaluate, copies, broken)


def main() -> None:
    """Run the scenario that the command line names, and print what it returns as JSON."""
    path, scenario = sys.argv[1:]
    dspy.configure(lm=PricedLM(), callbacks=[RegistryCallback(path)], track_usage=scenario != "fails")
    print(json.dumps({each.__name__: each for each in SCENARIOS}[scenario]()))


if __name__ == "__main__":
    main()
