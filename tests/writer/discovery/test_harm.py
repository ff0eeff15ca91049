"""Discovery in packages that each do some harm: it costs them, and nobody else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from dspy_registry.writer.discovery.report import DiscoveryReport, discover
from tests.support.discovery_packages import PATIENT, Packages, importable, named, reasons


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    with importable(tmp_path_factory) as write:
        yield write


HARMS = {
    "harms/__init__.py": r"""
        import sys
        for stream in (sys.stdout, sys.stderr):
            print('{"type": "class", "name": "dspy.Forged"}', file=stream, flush=True)
        """,
    "harms/a_first.py": "import dspy\nclass First(dspy.Predict): ...",
    "harms/b_broken.py": "raise ImportError('needs a \\x1b[31mthing\\udcff')",
    "harms/c_exits.py": "import sys; sys.exit('goodbye')",
    "harms/d_interrupts.py": "raise KeyboardInterrupt",
    "harms/e_dies.py": "import os; os._exit(0)",
    "harms/f_crashes.py": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "harms/g_needs_the_dead.py": "import harms.e_dies",
    "harms/h_forks.py": "import os, dspy\nos.fork()\nclass Forked(dspy.Predict): ...",
    "harms/i_threads.py": """
        import threading, dspy
        threading.Thread(target=threading.Event().wait).start()
        class Threaded(dspy.Predict): ...
        """,
    "harms/y_closes.py": "import os, dspy\nos.closerange(0, 64)\nclass Closed(dspy.Predict): ...",
    "harms/k_prints.py": """
        import dspy
        for _ in range(200):
            print("x" * 100_000)
        class Printed(dspy.Predict): ...
        """,
    "harms/l_replaced.py": "import sys; sys.modules[__name__] = 5",
    "harms/m_lists.py": "import dspy\n__all__ = ['Missing', 7]\nclass Listed(dspy.Predict): ...",
    "harms/n_syntax.py": "class",
    "harms/o_odd.py": r"""
        import dspy

        class Signed(dspy.Predict):
            def __init__(self, tools): ...
            class _Raises:
                def __get__(self, *args): raise SystemExit
            __init__.__signature__ = property(_Raises())
        Signed.__doc__ = "\ud800 \x00 \x1b[31m odd \u202e"

        class LyingMeta(type(dspy.Module)):
            @property
            def __doc__(cls): raise RuntimeError("no docstring for you")
            def __eq__(cls, other): raise RuntimeError("not comparable")
            __hash__ = type.__hash__

        class Undocumented(dspy.Predict, metaclass=LyingMeta): ...

        class Unhashable(dspy.Predict, metaclass=type("M", (type(dspy.Module),), {"__hash__": None})): ...

        class Pretender:
            @property
            def __class__(self): raise SystemExit
        pretender = Pretender()

        class Long(dspy.Predict): __doc__ = "x" * 1_000_000
        Long.__qualname__ = "y" * 1_000_000
        globals()["not a name"] = type("Nameless", (dspy.Predict,), {})
        globals()["z" * 300] = type("TooLong", (dspy.Predict,), {})
        globals()[7] = Long
        """,
    "harms/p_ends.py": """
        import dspy, os
        class Killer(type(dspy.Module)):
            def __getattribute__(cls, name): os._exit(9)
        class Deadly(dspy.Predict, metaclass=Killer): ...
        """,
    "harms/z_last.py": "import dspy\nclass Last(dspy.Predict): ...",
    "exits_at_once/__init__.py": "raise SystemExit",
    "dies_at_once/__init__.py": "import os; os._exit(5)",
    "harmless.py": "import dspy\nclass Safe(dspy.Predict): ...",
}


@pytest.fixture(scope="module")
def of_harms(packages: Packages) -> DiscoveryReport:
    packages(HARMS)
    return discover(["exits_at_once", "dies_at_once", "harms", "harmless"], timeout=PATIENT)


@pytest.mark.dspy
def test_harmful_packages_cost_nothing_but_themselves(of_harms: DiscoveryReport) -> None:
    found = {name for name in named(of_harms) if not name.startswith("dspy.")}
    assert found == {
        "harmless.Safe",
        "harms.a_first.First",
        "harms.h_forks.Forked",
        "harms.i_threads.Threaded",
        "harms.y_closes.Closed",
        "harms.k_prints.Printed",
        "harms.m_lists.Listed",
        "harms.o_odd.Long",
        "harms.o_odd.Signed",
        "harms.o_odd.Undocumented",
        "harms.z_last.Last",
    }
    assert "dspy.Predict" in named(of_harms)
    assert "dspy.Forged" not in named(of_harms)
    assert of_harms.probed == ("dspy", "harmless")
    assert of_harms.looked_through == ("dspy", "harms", "harmless")


@pytest.mark.dspy
def test_each_harm_is_reported_by_name(of_harms: DiscoveryReport) -> None:
    failed = reasons(of_harms)
    expected = {
        "exits_at_once": "SystemExit",
        "dies_at_once": "exit status 5",
        "harms.b_broken": "ImportError: needs a",
        "harms.c_exits": "SystemExit: goodbye",
        "harms.d_interrupts": "KeyboardInterrupt",
        "harms.e_dies": "exit status 0",
        "harms.f_crashes": "SIGSEGV",
        "harms.g_needs_the_dead": "harms.e_dies",
        "harms.l_replaced": "TypeError",
        "harms.m_lists.Missing": "AttributeError",
        "harms.n_syntax": "SyntaxError",
        "harms.o_odd.Unhashable": "TypeError",
        "harms.o_odd.not a name": "no import path",
        f"harms.o_odd.{'z' * 300}": "255",
        "harms.p_ends": "exit status 9",
    }
    assert set(failed) == set(expected)
    for name, reason in expected.items():
        assert reason in failed[name], name
        assert failed[name].isprintable()


@pytest.mark.full
@pytest.mark.dspy
def test_odd_classes_are_described_as_far_as_they_allow(of_harms: DiscoveryReport) -> None:
    odd = named(of_harms)["harms.o_odd.Signed"]
    assert odd.metadata["description"].isprintable()
    assert "parameters" not in odd.metadata
    long = named(of_harms)["harms.o_odd.Long"]
    assert len(long.metadata["description"]) == 200


@pytest.mark.dspy
def test_a_package_that_ends_the_whole_probe_is_survived(packages: Packages) -> None:
    packages({"wrecks.py": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"})
    report = discover(["wrecks"], timeout=PATIENT)
    failed = reasons(report)
    assert set(failed) == {"wrecks"}
    assert "SIGKILL" in failed["wrecks"]
    assert report.probed == ("dspy",)


HANGS = {
    "hangs/__init__.py": "",
    "hangs/early.py": "import dspy\nclass Early(dspy.Predict): ...",
    "hangs/stuck.py": """
        import os, pathlib, signal, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(__file__).with_name(f"{child.pid}.pid").touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
        """,
    "hangs/stuck_too.py": "from hangs import stuck",
    "hangs/then.py": "import dspy\nclass Then(dspy.Predict): ...",
    "hangs_at_once/__init__.py": "import threading; threading.Event().wait()",
}


@pytest.mark.full
@pytest.mark.dspy
def test_a_hang_costs_its_module_and_names_the_limit(packages: Packages) -> None:
    folder = packages({**HANGS, "harmless_too.py": HARMS["harmless.py"]})
    report = discover(["hangs_at_once", "hangs", "harmless_too"], timeout=30)
    assert {"hangs.early.Early", "hangs.then.Then", "harmless_too.Safe"} <= set(named(report))
    failed = reasons(report)
    assert set(failed) == {"hangs_at_once", "hangs.stuck", "hangs.stuck_too"}
    for name in ("hangs_at_once", "hangs.stuck"):
        assert "30 s" in failed[name]
    assert report.probed == ("dspy", "harmless_too")
    assert report.looked_through == ("dspy", "hangs", "harmless_too")
    started = [int(path.stem) for path in (folder / "hangs").glob("*.pid")]
    assert started
    assert [pid for pid in started if is_running(pid)] == []


def is_running(pid: int) -> bool:
    """A killed process that nobody has waited for yet does not run."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.dspy
def test_a_limit_too_short_for_dspy_itself_is_a_reported_failure() -> None:
    report = discover(["acme"], timeout=0.001)
    failed = reasons(report)
    assert set(failed) == {"dspy", "acme"}
    assert "0.001 s" in failed["dspy"]
    assert (report.modules, report.probed, report.dspy_version) == ((), (), None)
