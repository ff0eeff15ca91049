"""Discovery in the installed DSPy, in packages, and in interpreters of all sorts."""

from __future__ import annotations

import ast
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dspy_registry import DiscoveryError, InvalidArgumentError, ModuleInfo
from dspy_registry.registry_store.validation import validate_module
from dspy_registry.writer.core_modules import CORE_MODULES
from dspy_registry.writer.discovery import probe_run as discovery_run
from dspy_registry.writer.discovery.infer import KNOWN
from dspy_registry.writer.discovery.report import DiscoveryReport, discover
from tests.support.discovery_packages import PATIENT, Packages, importable, named, reasons


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    with importable(tmp_path_factory) as write:
        yield write


# The installed DSPy


@pytest.fixture(scope="module")
def of_dspy() -> DiscoveryReport:
    return discover(timeout=PATIENT)


@pytest.mark.dspy
def test_everything_public_in_dspy_is_found_once(of_dspy: DiscoveryReport) -> None:
    found = named(of_dspy)
    assert of_dspy.failures == ()
    assert of_dspy.probed == of_dspy.looked_through == ("dspy",)
    assert 28 <= len(found) <= 50
    assert {info.name for info in CORE_MODULES} <= set(found)
    assert {
        *("dspy.BestOfN", "dspy.CodeAct", "dspy.MultiChainComparison", "dspy.Refine", "dspy.RLM"),
        *("dspy.BootstrapFewShot", "dspy.COPRO", "dspy.GEPA", "dspy.KNNFewShot", "dspy.SIMBA"),
        *("dspy.Embeddings", "dspy.Retrieve", "dspy.experimental.ReAnchor"),
    } <= set(found)
    classes = [info.metadata["class"] for info in found.values()]
    assert len(set(classes)) == len(classes)
    # Bases that nobody can run, and what is no module at all.
    assert not {"dspy.Module", "dspy.Signature", "dspy.LM", "dspy.Parallel"} & set(found)
    assert not any(name.endswith("Teleprompter") for name in found)


@pytest.mark.dspy
def test_what_discovery_says_of_a_core_module_agrees_with_core(of_dspy: DiscoveryReport) -> None:
    found = named(of_dspy)
    for core in CORE_MODULES:
        same = msgspec.structs.replace(found[core.name], metadata={}, native_available=False)
        assert same == msgspec.structs.replace(core, native_available=False)


@pytest.mark.dspy
def test_every_class_of_this_dspy_is_known_to_the_table(of_dspy: DiscoveryReport) -> None:
    assert [name for name in named(of_dspy) if name not in KNOWN] == []


@pytest.mark.dspy
def test_metadata_of_dspy_modules(of_dspy: DiscoveryReport) -> None:
    found = named(of_dspy)
    assert of_dspy.dspy_version is not None
    for info in found.values():
        assert validate_module(info) == info
        assert info.estimated_duration > 0
        assert info.native_available is False
        assert info.metadata["discovered_from"] == info.metadata["package"] == "dspy"
        assert info.metadata["version"] == of_dspy.dspy_version
    react = found["dspy.ReAct"].metadata
    assert react["kind"] == "module"
    assert {"name": "tools", "required": True} in react["parameters"]
    assert {"name": "max_iters", "required": False, "default": 20} in react["parameters"]
    assert found["dspy.Embeddings"].metadata["kind"] == "retriever"
    assert found["dspy.Embeddings"].metadata["description"] == "DSPy Embeddings retriever."
    assert found["dspy.MIPROv2"].metadata["kind"] == "optimizer"
    assert found["dspy.RLM"].metadata["experimental"] is True
    assert found["dspy.RLM"].metadata["description"] == "Recursive Language Model module."
    assert found["dspy.Predict"].metadata["experimental"] is False
    searches = found["dspy.BootstrapFewShotWithRandomSearch"].metadata
    assert searches["aliases"] == ["dspy.BootstrapRS"]


@pytest.mark.full
@pytest.mark.dspy
def test_a_second_look_finds_the_same(of_dspy: DiscoveryReport) -> None:
    assert discover(timeout=PATIENT, python=of_dspy.python) == of_dspy


# Packages

ACME = {
    "acme/__init__.py": """
        '''Everything for acme.'''
        __version__ = "7.1"
        from acme.agents import Agent
        from acme.agents._planner import Planner
        import dspy
        from dspy import ReAct
        """,
    "acme/agents/__init__.py": """
        from acme.agents.core import Agent, Base
        """,
    "acme/agents/core.py": """
        from abc import abstractmethod
        import dspy

        class Base(dspy.ChainOfThought):
            "Left out: it says that it is abstract."
            @abstractmethod
            def plan(self): ...

        class Unfinished(dspy.Module):
            "Left out: its forward only raises."
            def forward(self, **inputs):
                "What subclasses do."
                raise NotImplementedError(f"{type(self)} must implement it")

        class UnfinishedToo(dspy.Module):
            async def aforward(self, **inputs):
                raise NotImplementedError

        class Without(dspy.Module):
            "Left out: nothing to call."

        class Agent(Base):
            '''Plans,\tthen acts.

            At length.
            '''
            def __init__(self, tools, max_iters: int = 3, model=object(), api_key="sk-123", **config): ...
            def plan(self): ...

        class Refuses(Unfinished):
            def forward(self, limit):
                if limit:
                    raise NotImplementedError
                return limit

        class Coder(dspy.Module):
            def __init__(self, *interpreters, interpreter_factory=None): ...
            async def aforward(self): ...
        """,
    "acme/agents/_planner.py": """
        import dspy
        class Planner(dspy.ReAct): ...
        class Unseen(dspy.ReAct): ...
        """,
    "acme/search.py": """
        import dspy
        from acme.agents.core import Agent
        __all__ = ["Store", "Lazy"]
        class Store(dspy.Retrieve):
            def __init__(self, embedder): ...
        def __getattr__(name):
            if name == "Lazy":
                return type("Lazy", (dspy.Embeddings,), {"__module__": __name__})
            raise AttributeError(name)
        """,
    "acme/tuning.py": """
        import dspy
        from dspy.teleprompt import Teleprompter
        class Tuner(Teleprompter):
            def compile(self, student, *, trainset): ...
        class NotYet(Teleprompter): ...
        def make():
            class Made(dspy.BootstrapFewShot): ...
            return Made
        First, Second = make(), make()
        """,
    "acme/experimental/__init__.py": """
        import dspy, sys
        # The probe's own folder must not become importable.
        assert not any(path.endswith("/writer") for path in sys.path), sys.path
        assert sys.argv == [""]
        class Trial(dspy.Predict): ...
        """,
    "acme/tests/__init__.py": "raise AssertionError('tests are not imported')",
    "acme/test_more.py": "raise AssertionError('tests are not imported')",
    "acme/conftest.py": "raise AssertionError('tests are not imported')",
    "acme/run-me.py": "raise AssertionError('programs are not imported')",
    "acme/__main__.py": "raise AssertionError('programs are not imported')",
    "single.py": """
        import dspy
        from acme import Agent
        class Alone(dspy.Predict): ...
        """,
}


@pytest.fixture(scope="module")
def of_acme(packages: Packages) -> DiscoveryReport:
    packages(ACME)
    roots = ["acme", "single", "acme.agents", "no-name", "nowhere_to_be_found"]
    return discover(roots, timeout=PATIENT)


@pytest.fixture(scope="module")
def acme(of_acme: DiscoveryReport) -> dict[str, ModuleInfo]:
    found = named(of_acme)
    return {name: info for name, info in found.items() if not name.startswith("dspy.")}


@pytest.mark.dspy
def test_packages_offer_each_concrete_class_once_where_it_is_public(
    acme: dict[str, ModuleInfo],
) -> None:
    assert sorted(acme) == [
        "acme.Agent",
        "acme.Planner",
        "acme.agents.core.Coder",
        "acme.agents.core.Refuses",
        "acme.experimental.Trial",
        "acme.search.Lazy",
        "acme.search.Store",
        "acme.tuning.First",
        "acme.tuning.Second",
        "acme.tuning.Tuner",
        "single.Alone",
    ]


@pytest.mark.dspy
def test_roots_that_are_not_there_are_reported_by_name(of_acme: DiscoveryReport) -> None:
    failed = reasons(of_acme)
    assert set(failed) == {"no-name", "nowhere_to_be_found"}
    assert "ModuleNotFoundError" in failed["nowhere_to_be_found"]
    # Not installed is something to be sure of, not a failure to look.
    assert of_acme.probed == ("dspy", "acme", "single", "acme.agents", "nowhere_to_be_found")


@pytest.mark.dspy
def test_what_a_class_inherits_and_what_its_constructor_tells(acme: dict[str, ModuleInfo]) -> None:
    agent = acme["acme.Agent"]
    assert agent.category == "reasoning"
    assert agent.capabilities == (
        *("reasoning", "step_by_step", "explanation"),
        *("tool_use", "iterative"),
    )
    assert agent.estimated_duration == 5000
    assert agent.requirements.memory == "medium"
    assert agent.metadata == {
        "discovered_from": "acme",
        "package": "acme",
        "version": "7.1",
        "kind": "module",
        "class": "acme.agents.core.Agent",
        "ancestor": "dspy.ChainOfThought",
        "description": "Plans, then acts.",
        "parameters": [
            {"name": "tools", "required": True},
            {"name": "max_iters", "required": False, "default": 3},
            {"name": "model", "required": False},  # its repr would differ from run to run
            {"name": "api_key", "required": False},  # which may well come from the environment
            {"name": "**config", "required": False},
        ],
        "experimental": False,
    }
    coder = acme["acme.agents.core.Coder"]
    assert (coder.category, coder.capabilities) == ("unknown", ("code_generation",))
    assert (coder.requirements.compute, coder.estimated_duration) == ("high", 10_000)
    planner = acme["acme.Planner"]
    assert (planner.capabilities, planner.estimated_duration) == (
        KNOWN["dspy.ReAct"].capabilities,
        5000,
    )
    store = acme["acme.search.Store"]
    assert (store.category, store.pool_type) == ("retrieval", "neural")
    assert store.capabilities == ("semantic_search", "embeddings")
    tuner = acme["acme.tuning.Tuner"]
    assert (tuner.category, tuner.pool_type) == ("optimization", "optimizer")
    assert acme["acme.tuning.First"].metadata["ancestor"] == "dspy.BootstrapFewShot"
    assert acme["acme.experimental.Trial"].metadata["experimental"] is True


@pytest.mark.full
@pytest.mark.dspy
def test_what_has_gone_is_told_from_what_could_not_be_looked_at(packages: Packages) -> None:
    source = "import dspy\nclass Kept(dspy.Predict): ...\n"
    folder = packages({"moving/__init__.py": "", "moving/a.py": source, "moving/b.py": source})
    before = named(discover(["moving"], timeout=PATIENT))
    assert {"moving.a.Kept", "moving.b.Kept"} <= set(before)
    (folder / "moving" / "a.py").unlink()
    (folder / "moving" / "b.py").write_text("import no_such_dependency\n")
    report = discover(["moving"], timeout=PATIENT)
    assert not {"moving.a.Kept", "moving.b.Kept"} & set(named(report))
    assert report.probed == ("dspy",)
    assert report.looked_through == ("dspy", "moving")
    gone, unclear = before["moving.a.Kept"], before["moving.b.Kept"]
    assert report.would_have_found(gone.name, gone.metadata)
    assert not report.would_have_found(unclear.name, unclear.metadata)
    assert not report.would_have_found("other.Module", {"discovered_from": "other"})
    assert not report.would_have_found("declared.by.a.Client", {})


# Interpreters


def test_an_environment_without_dspy(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    report = discover(["acme"], python=python, timeout=PATIENT)
    assert report.modules == ()
    assert report.python == str(python)
    failed = reasons(report)
    assert set(failed) == {"dspy", "acme"}
    assert failed["dspy"].startswith("ModuleNotFoundError")
    assert report.probed == ("dspy",)


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python", "/"])
def test_what_is_no_interpreter_is_an_error_that_names_it(python: str) -> None:
    with pytest.raises(DiscoveryError, match=f"'{python}'"):
        discover(python=python, timeout=PATIENT)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_positive_number_of_seconds(timeout: float) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout"):
        discover(timeout=timeout)


@pytest.mark.parametrize("name", ["probe", "walk", "facts"])
def test_what_runs_in_the_workers_interpreter_needs_nothing_but_python_3_9(name: str) -> None:
    source = Path(discovery_run.__file__).with_name(f"{name}.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
        if module
    }
    assert imported
    assert imported <= sys.stdlib_module_names
