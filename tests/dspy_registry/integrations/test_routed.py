"""`Routed` in everything that DSPy does with a module, on its dummy language model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.dspy
dspy = pytest.importorskip("dspy")
cloudpickle = pytest.importorskip("cloudpickle")

from dspy.utils import DummyLM  # noqa: E402

from dspy_registry import ModuleInfo, Registry, RegistryWriter  # noqa: E402
from dspy_registry.integrations.dspy import RegistryCallback, Routed  # noqa: E402
from dspy_registry.router import dspy_settings  # noqa: E402
from tests.support.reporting import NotingReporter  # noqa: E402

QUESTION = {"question": "why?"}


class Fails(dspy.Module):  # type: ignore[misc]
    def forward(self, **_: Any) -> Any:
        raise ConnectionError("down")


@pytest.fixture
def registry(registry_folder: Path) -> Iterator[Registry]:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for name, milliseconds in (("acme.Fast", 60_000), ("acme.Deep", 600_000)):
            writer.register_module(ModuleInfo(name, estimated_duration=milliseconds, capabilities=("qa",)))
        yield registry


@pytest.fixture
def reporter(registry_folder: Path) -> Iterator[NotingReporter]:
    with NotingReporter(registry_folder) as reporter:
        yield reporter


@pytest.fixture
def routed(registry: Registry, reporter: NotingReporter) -> Routed:
    targets = {"acme.Fast": dspy.Predict("question -> answer"), "acme.Deep": dspy.ChainOfThought("question -> answer")}
    return Routed(registry, targets, "qa", reporter=reporter)


@pytest.fixture
def lm() -> Iterator[DummyLM]:
    model = DummyLM({"": {"answer": "yes", "reasoning": "so"}})
    with dspy.context(lm=model):
        yield model


def names(reporter: NotingReporter) -> list[Any]:
    return [call[0] for call in reporter.calls]


def test_it_answers_as_the_target_does(routed: Routed, lm: DummyLM, reporter: NotingReporter) -> None:
    assert routed(**QUESTION).answer == "yes"
    assert asyncio.run(routed.acall(**QUESTION)).answer == "yes"
    assert names(reporter) == ["acme.Fast", "acme.Fast"]


def test_the_next_target_answers_when_one_fails(registry: Registry, lm: DummyLM, reporter: NotingReporter) -> None:
    targets = {"acme.Fast": Fails(), "acme.Deep": dspy.ChainOfThought("question -> answer")}
    routed = Routed(registry, targets, reporter=reporter)
    result = routed.route_and_call(QUESTION)
    assert [(each.name, each.kind) for each in result.attempts] == [("acme.Fast", "unavailable"), ("acme.Deep", "ok")]
    assert result.value.reasoning == "so"


def test_the_callback_counts_nothing_twice(registry: Registry, lm: DummyLM, reporter: NotingReporter) -> None:
    class Inner(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return self.predict(question=question)

    routed = Routed(registry, {"acme.Fast": Inner(), "acme.Deep": Inner()}, reporter=reporter)
    with dspy.context(callbacks=[RegistryCallback(reporter=reporter)]):
        routed(**QUESTION)
        asyncio.run(routed.acall(**QUESTION))
    reported = [name if isinstance(name, str) else name[0] for name in names(reporter)]
    assert reported == ["dspy.Predict", "acme.Fast"] * 2


def test_a_lambda_around_a_module_of_the_same_name_is_not_counted_twice(
    registry: Registry, lm: DummyLM, reporter: NotingReporter
) -> None:
    predict = dspy.Predict("question -> answer")
    routed = Routed(registry, {"dspy.Predict": lambda question: predict(question=question)}, reporter=reporter)
    with dspy.context(callbacks=[RegistryCallback(reporter=reporter)]):
        routed(**QUESTION)
    assert names(reporter) == ["dspy.Predict"]


def test_it_runs_in_parallel_and_in_threads_of_asyncio(routed: Routed, lm: DummyLM) -> None:
    examples = [dspy.Example(**QUESTION).with_inputs("question") for _ in range(8)]
    found = dspy.Parallel(num_threads=4, disable_progress_bar=True)([(routed, each) for each in examples])
    assert [each.answer for each in found] == ["yes"] * 8
    assert asyncio.run(dspy.asyncify(routed)(**QUESTION)).answer == "yes"


@pytest.mark.parametrize("is_async", [False, True])
def test_it_streams(routed: Routed, lm: DummyLM, is_async: bool) -> None:
    async def main() -> Any:
        streamed = dspy.streamify(routed, is_async_program=is_async)
        return [each async for each in streamed(**QUESTION)][-1]

    assert asyncio.run(main()).answer == "yes"


def test_optimizers_compile_its_targets(routed: Routed, lm: DummyLM) -> None:
    examples = [dspy.Example(question=f"why {number}?", answer="yes").with_inputs("question") for number in range(2)]
    logging.getLogger("dspy").setLevel(logging.ERROR)
    optimizer = dspy.BootstrapFewShot(metric=lambda example, found, trace=None: found.answer == "yes")
    compiled = optimizer.compile(routed, trainset=examples)
    assert isinstance(compiled, Routed)
    assert compiled.targets["acme.Fast"].demos
    assert not routed.targets["acme.Fast"].demos
    assert compiled.router is routed.router
    assert compiled(**QUESTION).answer == "yes"


def test_it_is_saved_and_loaded(routed: Routed, registry: Registry, tmp_path: Path, lm: DummyLM) -> None:
    routed.targets["acme.Fast"].demos = [dspy.Example(question="a", answer="b")]
    routed.save(tmp_path / "routed.json")
    targets = {"acme.Fast": dspy.Predict("question -> answer"), "acme.Deep": dspy.ChainOfThought("question -> answer")}
    other = Routed(registry, targets, "qa", reporter=routed.router.reporter)
    other.load(tmp_path / "routed.json")
    assert other.targets["acme.Fast"].demos[0]["question"] == "a"
    assert other(**QUESTION).answer == "yes"


def test_copies_have_their_own_targets_and_share_the_router(routed: Routed, lm: DummyLM) -> None:
    copy = routed.deepcopy()
    assert copy.targets["acme.Fast"] is not routed.targets["acme.Fast"]
    assert copy.router is routed.router
    assert copy(**QUESTION).answer == "yes"
    assert len(copy.named_predictors()) == 2
    assert not copy.reset_copy().targets["acme.Fast"].demos
    pickled = cloudpickle.loads(cloudpickle.dumps(routed))  # as DSPy saves whole programs
    assert pickled(**QUESTION).answer == "yes"
    pickled.router.reporter.close(0.0)
    pickled.router.registry.close()


def test_it_is_a_part_of_other_modules(routed: Routed, lm: DummyLM) -> None:
    class Outer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answer = routed

        def forward(self, question: str) -> Any:
            return self.answer(question=question)

    outer = Outer()
    assert outer(**QUESTION).answer == "yes"
    assert {name.partition(".")[0] for name, _ in outer.named_predictors()} == {"answer"}


def test_a_model_gets_the_time_left_where_dspy_lets_it() -> None:
    with dspy.context(lm=dspy.LM("openai/none", cache=False)):
        limited = dspy_settings.limited_lm(3.0)
        assert limited.kwargs["timeout"] == 4.0
        assert "timeout" not in dspy.settings.lm.kwargs
    with dspy.context(lm=dspy.LM("openai/none", cache=False, timeout=1)):
        assert dspy_settings.limited_lm(3.0) is None  # its own is shorter
    with dspy.context(lm=dspy.LM("openai/none")):
        assert dspy_settings.limited_lm(3.0) is None  # its cache has the timeout in its key
    with dspy.context(lm=DummyLM([])):
        assert dspy_settings.limited_lm(3.0) is None  # its engine takes none
    assert [dspy_settings.timeout_step(seconds) for seconds in (0.1, 0.3, 4.0, 5.0, 9999.0)] == [0.25, 0.5, 4, 8, 512]


def test_the_time_left_reaches_the_model_inside_the_target(registry: Registry, reporter: NotingReporter) -> None:
    seen: list[Any] = []
    targets = {"acme.Fast": lambda question: seen.append(dspy.settings.lm.kwargs.get("timeout"))}
    with dspy.context(lm=dspy.LM("openai/none", cache=False)):
        routed = Routed(registry, targets, reporter=reporter)
        routed(**QUESTION)
    assert seen == [128.0]  # recommended: 72 s
