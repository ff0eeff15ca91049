"""Real DSPy programs in processes of their own, seen through the callback and a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, ModuleUsage, Registry, WriterClient
from dspy_registry.registry_store.outcome_kinds import CANCELLED, KINDS
from tests.support import TESTS
from tests.support.command import daemon
from tests.support.dspy_program_costs import COST, TOKENS_IN, TOKENS_OUT
from tests.support.fork_server import WITH_DSPY, run_code

pytestmark = pytest.mark.dspy
SUPPORT = TESTS / "support"


@pytest.fixture
def served(seeded_registry: Path) -> Iterator[Path]:
    with daemon(seeded_registry):
        with WriterClient(seeded_registry) as client:
            client.register_module(ModuleInfo("dspy_program.Inner", estimated_duration=10))
        yield seeded_registry


def python(code: str, *arguments: object) -> Any:
    """What a process that can import the program prints, as JSON."""
    done = run_code(code, *arguments, imports=WITH_DSPY, folder=SUPPORT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def play(path: Path, scenario: str) -> tuple[Any, dict[str, ModuleUsage]]:
    """What a scenario prints, and the usage it leaves behind, once its process has ended."""
    said = python("import dspy_program; dspy_program.main()", path, scenario)
    with Registry(path) as registry:
        return said, {usage.name: usage for usage in registry.usages()}


def calls(usages: dict[str, ModuleUsage]) -> dict[str, tuple[int, int]]:
    return {name: (usage.calls, usage.errors) for name, usage in usages.items()}


def test_outer_and_inner_calls_have_their_own_rows(served: Path) -> None:
    _, usages = play(served, "nested")
    assert calls(usages) == {
        "dspy.Predict": (6, 0),
        "dspy.ChainOfThought": (3, 0),
        "dspy_program.Inner": (3, 0),
        "dspy_program.Outer": (3, 0),
    }
    outer, inner, predict = (usages[name] for name in ("dspy_program.Outer", "dspy_program.Inner", "dspy.Predict"))
    assert set(outer.durations) == set(predict.durations) == {"small", "large", "very_large"}
    assert outer.overall.p50 > inner.overall.p50 > 0
    assert predict.durations["large"].calls == 2


def test_tokens_and_cost_include_those_of_inner_calls(served: Path) -> None:
    said, usages = play(served, "nested")
    tracked = [usage["dummy"] for usage in said]
    outer = usages["dspy_program.Outer"]
    assert outer.tokens_in == sum(usage["prompt_tokens"] for usage in tracked) == 3 * 2 * TOKENS_IN
    assert outer.tokens_out == sum(usage["completion_tokens"] for usage in tracked) == 3 * 2 * TOKENS_OUT
    assert outer.cost_usd_per_call == 2 * COST
    for name, llm_calls in (("dspy.Predict", 6), ("dspy_program.Inner", 3), ("dspy.ChainOfThought", 3)):
        usage = usages[name]
        assert (usage.tokens_in, usage.tokens_out) == (llm_calls * TOKENS_IN, llm_calls * TOKENS_OUT)
        assert usage.cost_usd_per_call == COST


def test_exceptions_are_errors_of_the_calls_they_leave(served: Path) -> None:
    said, usages = play(served, "fails")
    assert said == ["as asked", "yes", "as asked"]
    assert calls(usages) == {
        "dspy.Predict": (2, 0),
        "dspy.ChainOfThought": (1, 0),
        "dspy_program.Inner": (3, 2),
        "dspy_program.Outer": (3, 2),
    }
    assert usages["dspy_program.Outer"].tokens_in == 2 * TOKENS_IN  # without track_usage, from the model's history


def test_calls_in_threads(served: Path) -> None:
    said, usages = play(served, "threads")
    assert said == 40
    assert calls(usages) == {
        "dspy.Predict": (80, 0),
        "dspy.ChainOfThought": (40, 0),
        "dspy_program.Inner": (40, 0),
        "dspy_program.Outer": (40, 0),
    }
    assert usages["dspy_program.Outer"].tokens_in == 80 * TOKENS_IN
    assert usages["dspy_program.Inner"].cost_usd == 40 * COST


def test_threads_inside_a_module_count_towards_it(served: Path) -> None:
    _, usages = play(served, "nested_threads")
    fan = usages["dspy_program.nested_threads.Fan"]
    assert (fan.calls, fan.tokens_in, fan.cost_usd) == (1, 5 * TOKENS_IN, 5 * COST)
    assert usages["dspy_program.Inner"].calls == 5


def test_calls_in_tasks_that_overlap(served: Path) -> None:
    said, usages = play(served, "tasks")
    assert said == 4
    assert calls(usages) == {
        "dspy.Predict": (48, 0),
        "dspy.ChainOfThought": (16, 0),
        "dspy_program.Inner": (40, 8),
        "dspy_program.Outer": (20, 4),
    }
    assert usages["dspy_program.Inner"].tokens_in == 32 * TOKENS_IN
    assert usages["dspy_program.Outer"].cost_usd == 48 * COST


def test_a_cancelled_call_is_counted_by_its_kind_alone(served: Path) -> None:
    said, usages = play(served, "cancelled")
    assert said == "given up"
    assert calls(usages) == {"dspy_program.cancelled.Waits": (0, 0)}
    kinds = dict(zip(KINDS, usages["dspy_program.cancelled.Waits"].kinds, strict=True))
    assert kinds == {**dict.fromkeys(KINDS, 0), CANCELLED: 1}


def test_a_module_inside_a_tool_counts_towards_the_call_around_it(served: Path) -> None:
    _, usages = play(served, "tool")
    assert usages["dspy_program.WithTool"].tokens_in == usages["dspy_program.Inner"].tokens_in == TOKENS_IN


def test_compile_is_reported_under_the_optimizer(served: Path) -> None:
    said, usages = play(served, "optimizer")
    assert said == "Inner"
    assert usages["dspy.BootstrapFewShot"].calls == 1
    assert usages["dspy.BootstrapFewShot"].tokens_in == usages["dspy_program.Inner"].tokens_in > 0
    assert usages["dspy.LabeledFewShot"].calls == 1  # which BootstrapFewShot compiles with first


def test_an_evaluation_is_no_module_and_its_calls_are(served: Path) -> None:
    said, usages = play(served, "evaluate")
    assert said == 100.0
    assert calls(usages) == {"dspy_program.Inner": (4, 0), "dspy.Predict": (4, 0)}


def test_a_callback_may_be_copied_pickled_and_attached_to_one_module(served: Path) -> None:
    said, usages = play(served, "copies")
    assert said == ["yes", "yes"]
    assert calls(usages) == {"dspy.Predict": (1, 0)}


def test_whatever_fails_in_the_callback_the_program_does_not_notice(served: Path) -> None:
    said, usages = play(served, "broken")
    assert said == ["yes", "as asked"]
    assert calls(usages)["dspy_program.Outer"] == (2, 1)


def test_without_a_daemon_or_a_registry_the_program_runs(seeded_registry: Path, tmp_path: Path) -> None:
    assert play(seeded_registry, "fails") == (["as asked", "yes", "as asked"], {})
    nowhere = tmp_path / "nowhere"
    said = python("import dspy_program; dspy_program.main()", nowhere, "fails")
    assert said == ["as asked", "yes", "as asked"]
    assert not nowhere.exists()


def test_a_program_run_as_a_script_is_main(served: Path) -> None:
    done = subprocess.run(
        [sys.executable, SUPPORT / "dspy_program.py", served, "tool"], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    with Registry(served) as registry:
        assert registry.usage("__main__.WithTool").calls == 1


def test_workers_that_fork_after_the_callback_was_set(served: Path) -> None:
    code = """
        import json, os, sys
        import dspy, dspy_program
        from dspy_registry.integrations.dspy import RegistryCallback

        dspy.configure(lm=dspy_program.PricedLM(), callbacks=[RegistryCallback(sys.argv[1])])
        program = dspy_program.Inner()
        program(question="parent")
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                for _ in range(4):
                    program(question="child")
                sys.exit(0)
            children.append(child)
        print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
    """
    assert python(code, served) == [0, 0, 0]
    with Registry(served) as registry:
        assert registry.usage("dspy_program.Inner").calls == 13


# Names


def test_a_module_goes_by_the_name_that_discovery_gives_it(tmp_path: Path) -> None:
    code = """
        import importlib, json
        from dspy_registry.integrations.class_names import class_names
        from dspy_registry.writer.discovery.report import discover

        import dspy
        wrong = {}
        modules = [m for m in discover(timeout=60).modules if not m.metadata.get("experimental")]
        for module in modules:
            place, _, name = module.metadata["class"].rpartition(".")
            names = class_names(getattr(importlib.import_module(place), name))
            if names[0] != module.name:
                wrong[module.name] = names
        print(json.dumps([len(modules), wrong]))
    """
    found, wrong = python(code)
    assert found > 20
    assert wrong == {}


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A package with a class that is public elsewhere than where it is defined, under two names; and a private one."""
    files = {
        "acme/__init__.py": "from acme.impl.text import Summarise\nShorten = Summarise\n",
        "acme/impl/__init__.py": "",
        "acme/impl/text.py": "import dspy\nclass Summarise(dspy.Predict): pass\nclass _Own(dspy.Predict): pass\n",
        "acme/api.py": "from acme._deep import Hidden\n__all__ = ['Hidden']\n",
        "acme/_deep.py": "import dspy\nclass Hidden(dspy.Predict): pass\n",
        "acme/app.py": "import dspy, json\nfrom dspy_registry.integrations.class_names import class_names\n"
        "class Program(dspy.Module): pass\nprint(json.dumps(class_names(Program)))\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_class_is_told_under_every_name_it_may_be_registered_by(acme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(acme), os.environ.get("PYTHONPATH", ""))))
    code = """
        import json
        import acme, acme.api
        from acme.impl import text
        from dspy_registry.integrations.class_names import class_names

        class Local:
            class Within: pass

        def make():
            class Made: pass
            return Made
        classes = acme.Summarise, text._Own, acme.api.Hidden, Local.Within, make()
        print(json.dumps([class_names(cls) for cls in classes]))
    """
    summarise, own, hidden, within, made = python(code)
    assert summarise == ["acme.Summarise", "acme.Shorten", "acme.impl.text.Summarise"]
    assert own == ["acme.impl.text._Own"]
    assert hidden == ["acme.api.Hidden", "acme._deep.Hidden"]
    assert (within, made) == (["__main__.Local.Within"], ["__main__.make.Made"])
    done = subprocess.run([sys.executable, "-m", "acme.app"], cwd=acme, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == ["__main__.Program", "acme.app.Program"]
