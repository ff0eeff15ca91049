"""What packages do during discovery stays inside it: processes, reports, and values of the environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry.writer.discovery.report import discover
from tests.support.discovery_packages import PATIENT, Packages, importable, named, reasons
from tests.support.selection import each

pytestmark = pytest.mark.dspy


@pytest.fixture
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    with importable(tmp_path_factory) as write:
        yield write


DAEMON = """
    import os, sys, time, dspy
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open({path!r}, "w").write(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    while not os.path.exists({path!r}) or not open({path!r}).read():
        time.sleep(0.01)
    {then}
    class Found(dspy.Predict): ...
    """


def ended(pid: int) -> bool:
    """Whether no process of this number runs any more, in time."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("then", each(2, ["pass", "os.kill(os.getppid(), 9)"]))
def test_what_a_package_starts_in_a_session_of_its_own_does_not_outlive_discovery(
    packages: Packages, tmp_path: Path, then: str
) -> None:
    path = tmp_path / "pid"
    packages({"strays.py": DAEMON.format(path=str(path), then=then)})
    discover(["strays"], timeout=PATIENT)
    assert ended(int(path.read_text()))


@pytest.mark.full
def test_what_hangs_in_another_session_is_ended_with_the_time(packages: Packages, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    packages({"hangs.py": DAEMON.format(path=str(path), then="time.sleep(600)")})
    report = discover(["hangs"], timeout=8)
    assert "hangs" in reasons(report)
    if path.exists():
        assert ended(int(path.read_text()))


def test_a_value_of_the_environment_is_not_reported(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_DATABASE", "postgres.internal.example")
    monkeypatch.setenv("ACME_PORT", "54321")
    monkeypatch.setenv("ACME_RATE", "0.7310")
    packages(
        {
            "leaky/__init__.py": """
                import os, dspy
                where = os.environ["ACME_DATABASE"]
                class Leaky(dspy.Predict):
                    __doc__ = f"Asks {where} for more."
                    def __init__(self, host=where, url=f"//{where}/x", port=int(os.environ["ACME_PORT"]), size=7,
                                 rate=float(os.environ["ACME_RATE"])): ...
                """,
            "leaky/broken.py": "import os; raise ImportError(os.environ['ACME_DATABASE'])",
            "leaky/late.py": """
                import os, dspy
                os.environ["ACME_LATE"] = "late.internal.example"  # as from a file
                class Late(dspy.Predict):
                    def __init__(self, host=os.environ["ACME_LATE"]): ...
                """,
            "leaky/long.py": "import os; raise ImportError('x' * 490 + os.environ['ACME_DATABASE'])",
        }
    )
    report = discover(["leaky"], timeout=PATIENT)
    shown = repr(report)
    assert "postgres" not in shown
    assert "54321" not in shown
    assert "0.731" not in shown
    assert "late.internal" not in shown
    found = named(report)["leaky.Leaky"].metadata
    assert found["description"] == "Asks ... for more."
    assert found["parameters"][3] == {"name": "size", "required": False, "default": 7}


FORGER = """
    import glob, json, os, pathlib, tempfile, time, dspy
    failed = {{"type": "failed", "name": "honest", "reason": "forged", "absent": False}}
    found = {{"type": "class", "key": "k", "name": "honest.Forged", "kind": "module", "path": "honest.Forged",
              "abstract": False, "mro": [], "parameters": None, "doc": "Forged.", "init_doc": None}}
    taken = {{**found, "key": "t", "name": "forger.Taken", "path": "honest.Honest"}}
    lines = "".join(json.dumps(record) + chr(10) for record in (failed, found, taken)).encode()
    pieces = b"2.0 %d" % len(lines) + bytes([10]) + lines
    def parent_of(pid):
        return pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[1]
    def children(pid):
        return [each for each in os.listdir("/proc") if each.isdigit() and tried(parent_of, each) == str(pid)]
    def tried(call, *arguments):
        try:
            return call(*arguments)
        except OSError:
            return None
    def append(path):
        with open(path, "ab", 0) as file:
            file.write(lines)
    while len(children(os.getppid())) < 2:  # the honest one has its process, too
        time.sleep(0.01)
    for number in range(3, 65536):
        tried(os.write, number, lines)
    own, looking = str(os.getpid()), str(os.getppid())
    for pid in {{looking, parent_of(looking), *children(looking)}} - {{own}}:
        for number in tried(os.listdir, f"/proc/{{pid}}/fd") or ():
            path = f"/proc/{{pid}}/fd/{{number}}"
            if (tried(os.readlink, path) or "").startswith("pipe:") or tried(os.path.isdir, path):
                tried(append, path)
                tried(append, f"{{path}}/2.0.jsonl")
    for path in glob.glob(tempfile.gettempdir() + "/dspy-discovery-*/*"):
        tried(append, path)
    pathlib.Path({done!r}).touch()
    class Forger(dspy.Predict): ...
    """
HONEST = """
    import os, time, dspy
    while not os.path.exists({done!r}):
        time.sleep(0.01)
    class Honest(dspy.Predict): ...
    """


def test_a_package_cannot_write_what_another_one_reports(packages: Packages, tmp_path: Path) -> None:
    done = str(tmp_path / "done")
    packages({"forger.py": FORGER.format(done=done), "honest.py": HONEST.format(done=done)})
    report = discover(["forger", "honest"], timeout=PATIENT)
    assert Path(done).exists()
    found = named(report).keys()
    assert "honest.Honest" in found
    assert found.isdisjoint({"honest.Forged", "forger.Taken"})
    assert "honest" not in reasons(report)


def test_folders_without_init_are_found_and_links_to_such_are_named(packages: Packages, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.py").write_text("import dspy\nclass Linked(dspy.Predict): ...")
    module = "import dspy\nclass {}(dspy.Predict): ..."
    folder = packages(
        {
            "spaced/__init__.py": "",
            "spaced/plain/deep/inner.py": module.format("Inner"),
            "spaced/plain/outer.py": module.format("Outer"),
            "spaced/data/readme.txt": "no module",
            "spaced/tests/test_it.py": "raise RuntimeError('a test was run')",
            "rootless/part/thing.py": module.format("Thing"),
        }
    )
    (folder / "spaced" / "linked").symlink_to(elsewhere)
    for number in range(1001):
        (folder / "spaced" / "wide" / f"f{number}").mkdir(parents=True)
    report = discover(["spaced", "rootless"], timeout=PATIENT)
    found = named(report)
    assert {"spaced.plain.deep.inner.Inner", "spaced.plain.outer.Outer", "rootless.part.thing.Thing"} <= found.keys()
    assert reasons(report).keys() == {"spaced.linked", "spaced.wide"}


def test_a_module_is_what_its_parts_are_or_is_reported_as_incomplete(packages: Packages) -> None:
    packages(
        {
            "own.py": """
                import dspy
                class Answer(dspy.Module):
                    def __init__(self):
                        super().__init__()
                        self.search = dspy.ReAct("question -> answer", tools=[])
                        self.check = dspy.ChainOfThought("answer -> verdict")
                    def forward(self, question, *, limit=3): ...

                class Sharper(Answer):
                    def forward(self, question): ...

                class Several(dspy.Module):
                    def __init__(self):
                        super().__init__()
                        self.each = [dspy.ChainOfThought("question -> answer") for _ in range(3)]
                    def forward(self, question): ...

                class Opaque(dspy.Module):
                    def forward(self, text): ...
                """
        }
    )
    report = discover(["own"], timeout=PATIENT)
    answer = named(report)["own.Answer"]
    assert (answer.category, answer.pool_type) == ("reasoning", "general")
    assert {"tool_use", "step_by_step"} <= set(answer.capabilities)
    assert answer.estimated_duration == 8000
    assert answer.metadata["uses"] == ["dspy.ReAct", "dspy.ChainOfThought"]
    assert answer.metadata["inputs"] == ["question", "limit"]
    assert named(report)["own.Sharper"].capabilities == answer.capabilities
    assert named(report)["own.Several"].metadata["uses"] == ["dspy.ChainOfThought"]
    assert [name for name in report.incomplete if name.startswith("own.")] == ["own.Opaque"]


SHAPES = {
    # Shapes of packages that others have published: each file stands for one.
    "shape_retriever.py": "import dspy\nclass PaperRM(dspy.Retrieve):\n    def forward(self, query, k=3): ...",
    "shape_agent/__init__.py": "from .core import Agent\n__all__ = ['Agent']",
    "shape_agent/core.py": """
        import dspy
        class Agent(dspy.Module):
            def __init__(self):
                super().__init__()
                self.review = dspy.ChainOfThought("code -> review")
            def forward(self, code): ...
        """,
    "shape_engine.py": """
        from dspy import Module, Predict
        class Engine(Module):
            def __init__(self, max_iterations=5, tools=None, interpreter=None):
                super().__init__()
                self.step = Predict("state -> action")
            def forward(self, **inputs): ...
        """,
    "shape_wrapper.py": """
        import dspy
        class Wrapper(dspy.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner
            def forward(self, **inputs): return self.inner(**inputs)
        """,
    "shape_optimizer.py": """
        from dspy.teleprompt import BootstrapFewShot
        class Tuned(BootstrapFewShot):
            def compile(self, student, *, trainset): ...
        """,
    "shape_needs_more.py": "import a_package_that_is_not_installed",
}


def test_packages_of_published_shapes_are_what_their_subclasses_tell(packages: Packages) -> None:
    packages(SHAPES)
    roots = sorted({name.partition("/")[0].removesuffix(".py") for name in SHAPES})
    report = discover(roots, timeout=PATIENT)
    found = {name: info for name, info in named(report).items() if name.startswith("shape_")}
    assert {name: (info.category, info.capabilities) for name, info in found.items()} == {
        "shape_retriever.PaperRM": ("retrieval", ("semantic_search",)),
        "shape_agent.Agent": ("reasoning", ("reasoning", "step_by_step", "explanation")),
        "shape_engine.Engine": (
            "prediction",
            ("basic_generation", "structured_output", "tool_use", "code_generation", "iterative"),
        ),
        "shape_wrapper.Wrapper": ("unknown", ()),
        "shape_optimizer.Tuned": ("optimization", found["shape_optimizer.Tuned"].capabilities),
    }
    assert "few_shot_learning" in found["shape_optimizer.Tuned"].capabilities
    assert [name for name in report.incomplete if name in found] == ["shape_wrapper.Wrapper"]
    assert reasons(report).keys() == {"shape_needs_more"}
