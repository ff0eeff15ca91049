"""A class counts under the name that it is registered by, as the daemon knows it from discovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Registry, WriterClient
from dspy_registry.writer.discovery.report import discover
from tests.support.command import daemon
from tests.support.discovery_packages import PATIENT, Packages, importable, named, reasons
from tests.support.fork_server import WITH_DSPY, run_code

pytestmark = pytest.mark.dspy

PACKAGES = {
    "acme/__init__.py": "",
    "acme/api.py": """
        from acme.agents.summarise import Summarise
        from acme.agents.summarise import Translate as Interpret
        __all__ = ["Summarise", "Interpret"]
        """,
    "acme/agents/__init__.py": "",
    "acme/agents/summarise.py": """
        import dspy
        class Summarise(dspy.Module):
            def forward(self, text): return dspy.Prediction(summary=text[:3])
        class Translate(Summarise): ...
        """,
    "lazy/__init__.py": """
        import importlib
        __all__ = ["Think"]
        def __getattr__(name):
            if name == "Think":
                return importlib.import_module("lazy._core").Think
            raise AttributeError(name)
        """,
    "lazy/_core.py": """
        import dspy
        class Think(dspy.Module):
            "thinks"
            def forward(self, text): return dspy.Prediction(summary=text)
        """,
    "declares/__init__.py": """
        import dspy
        from dspy_registry.integrations.dspy import module

        @module("declares.faq-bot", category="qa", capabilities=["reasoning"], memory="high", compute="medium",
                gpu=True, pool_type="neural", estimated_duration=70, description="Answers what is asked often.")
        class Faq(dspy.ChainOfThought): ...

        @module(memory="high")
        class Partly(dspy.ReAct): ...

        class Inherits(Faq): ...
        """,
}

PROGRAM = """
import sys
import dspy
from dspy_registry.integrations.dspy import RegistryCallback
from acme.agents.summarise import Summarise, Translate  # nobody here imports acme.api
from lazy._core import Think  # nor asks lazy for it

callback = RegistryCallback(sys.argv[1])
dspy.configure(callbacks=[callback])
for cls in (Summarise, Translate, Think):
    cls()(text="hello")
known = Summarise()
known.registry_name = "acme.Known"
known(text="hello")
assert callback.reporter.flush(30)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    with importable(tmp_path_factory) as write:
        yield write


def run(path: Path) -> None:
    done = run_code(PROGRAM, path, imports=WITH_DSPY)
    assert done.returncode == 0, done.stderr


def used(path: Path) -> dict[str, int]:
    with Registry(path) as registry:
        return {usage.name: usage.calls for usage in registry.usages()}


def test_a_class_counts_under_its_registered_name_wherever_it_was_imported_from(
    packages: Packages, seeded_registry: Path
) -> None:
    packages(PACKAGES)
    report = discover(["acme", "lazy"], timeout=PATIENT)
    with daemon(seeded_registry), WriterClient(seeded_registry) as client:
        run(seeded_registry)
        before = used(seeded_registry)
        assert set(before) == {
            *("acme.agents.summarise.Summarise", "acme.agents.summarise.Translate", "lazy._core.Think", "acme.Known")
        }
        client.apply_discovery(report)
        run(seeded_registry)
    after = {name: calls for name, calls in used(seeded_registry).items() if calls != before.get(name)}
    shown = {name for name in named(report) if not name.startswith("dspy.")}
    assert shown == {"acme.api.Summarise", "acme.api.Interpret", "lazy.Think"}
    assert after == {**dict.fromkeys(shown, 1), "acme.Known": 2}


def test_discovery_reads_what_a_class_declares(packages: Packages) -> None:
    packages(PACKAGES)
    report = discover(["declares"], timeout=PATIENT)
    found = named(report)
    faq = found["declares.faq-bot"]
    assert (faq.category, faq.capabilities, faq.pool_type, faq.estimated_duration) == (
        "qa",
        ("reasoning",),
        "neural",
        70,
    )
    assert (faq.requirements.memory, faq.requirements.compute, faq.requirements.gpu) == ("high", "medium", True)
    assert faq.metadata["description"] == "Answers what is asked often."
    assert faq.metadata["class"] == "declares.Faq"
    assert "declares.Faq" not in found
    partly, react = found["declares.Partly"], found["dspy.ReAct"]
    assert partly.requirements.memory == "high"
    assert (partly.capabilities, partly.estimated_duration) == (react.capabilities, react.estimated_duration)
    assert found["declares.Inherits"].category == "reasoning"


HOSTILE = """
import dspy

class Evil(str):
    def __eq__(self, other): raise RuntimeError
    __hash__ = str.__hash__

def made(name, declared):
    globals()[name] = type(name, (dspy.Predict,), {"__module__": __name__, "__dspy_registry__": declared})

made("Steals", {"name": "dspy.Predict"})
made("Twice", {"name": "hostile.Same"})
made("TwiceToo", {"name": "hostile.Same"})
made("Wrong", {"memory": "huge", "estimated_duration": -1})
made("Odd", {"name": 3, "category": Evil("x"), "capabilities": [object(), "reasoning"], "gpu": 1,
             "estimated_duration": 10**400})
made("Long", {"category": "x" * 100_000})
made("Surrogate", {"description": "\\ud800"})
made("NoDict", ["name"])

class Raises(dspy.Predict):
    __dspy_registry__ = property(lambda self: 1 / 0)
"""


def test_a_declaration_may_hold_anything_and_harms_nobody(packages: Packages) -> None:
    packages({"hostile/__init__.py": HOSTILE})
    report = discover(["hostile"], timeout=PATIENT)
    found = {name: info for name, info in named(report).items() if name.startswith("hostile.")}
    assert set(found) == {f"hostile.{name}" for name in ("Same", "Odd", "Long", "Surrogate", "NoDict", "Raises")}
    assert found["hostile.Odd"].capabilities == ("reasoning",)
    failed = reasons(report)
    assert "not one of hostile" in failed["dspy.Predict"]
    assert "hostile.Same" in failed
    assert "huge" in failed["hostile.Wrong"]
    assert "dspy.Predict" in named(report)
