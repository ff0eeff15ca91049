"""The wheel as its users install it: what it holds, and that it lives beside other people's packages and files."""

from __future__ import annotations

import json
import signal
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.wheels import Installation, build, clean_environment, committed_modules, other_wheel
from tests.test_readme import README, RUN, blocks

DATA = {
    "dspy_registry/py.typed",
    "dspy_registry/writer/manifests/manifest.schema.json",
    "dspy_registry/demo/acme.py",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("static", "templates")
        for path in (ROOT / "dspy_registry" / "explorer" / folder).iterdir()
    ),
}
# Installing takes longer than any test here: one worker process does it for all.
pytestmark = pytest.mark.xdist_group("wheel")
HERE = pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": "."}], ids=["plain", "pythonpath"])

WORKER = """
import sys
import dspy
from dspy.utils import DummyLM
from dspy_registry import Registry
from dspy_registry.integrations.dspy import RegistryCallback

with Registry(sys.argv[1]) as registry:
    dspy.configure(lm=DummyLM([{"answer": "Paris"}]), callbacks=[RegistryCallback(sys.argv[1])])
    assert dspy.Predict("question -> answer")(question="?").answer == "Paris"
    assert registry["dspy.Predict"].name == "dspy.Predict"
"""

PICKLES = """
import multiprocessing, pickle, sys
from dspy_registry import ModuleInfo, Registry, Requirements


def read(registry, info):
    return registry["dspy.Predict"] == info, type(info).__module__


if __name__ == "__main__":
    registry = Registry(sys.argv[1])
    info = ModuleInfo(name="a.B", category="c", capabilities=("d",), requirements=Requirements(memory="high"))
    assert pickle.loads(pickle.dumps(info)) == info
    assert pickle.loads(pickle.dumps(info.requirements)) == info.requirements
    assert pickle.loads(pickle.dumps(registry))["dspy.Predict"] == registry["dspy.Predict"]
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            answer = pool.apply(read, (registry, registry["dspy.Predict"]))
            assert answer == (True, "dspy_registry.registry_store.records"), answer
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("others")
    return [other_wheel(package, folder) for package in ("writer", "readers")]


@pytest.fixture(scope="session", params=["ours first", "ours last"])
def installation(
    request: pytest.FixtureRequest, wheel: Path, others: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    """The wheel after the others came and went again."""
    made = Installation(tmp_path_factory.mktemp("collision") / "venv")
    made.install([wheel, *others] if request.param == "ours first" else [*others, wheel])
    before = made.files("dspy_registry")
    assert made.files("writer")
    assert made.files("readers")
    made.pip("uninstall", "--yes", "other-writer", "other-readers")
    assert made.files("dspy_registry") == before
    made.see_dependencies()
    return made


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A project's folder whose own files have the names of our rooms."""
    folder = tmp_path / "project"
    (folder / "readers").mkdir(parents=True)
    for name in ("writer.py", "registry_store.py", "readers/__init__.py"):
        (folder / name).write_text("raise RuntimeError('this is the project's own file')\n")
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


# What is in it


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dspy_registry"}


def test_the_wheel_holds_each_module_and_no_test(wheel: Path) -> None:
    names = names_in(wheel)
    assert {name for name in names if name.endswith(".py")} == committed_modules()
    assert names >= DATA
    assert not [name for name in names if "tests/" in name]


@pytest.mark.full
def test_a_wheel_from_the_sdist_holds_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, tmp_path / "sdist", "sdist")
    root = unpacked(sdist, tmp_path / "unpacked")
    assert (root / "constraints.txt").is_file()
    assert (root / "tests" / "fixtures" / "face.txt").is_file()
    assert names_in(build(root, tmp_path / "wheel", "wheel")) == names_in(wheel)


# How it lives with others


@pytest.mark.full
@HERE
def test_the_readme_example_runs(installation: Installation, crowded: Path, environment: dict[str, str]) -> None:
    example = next(block for block in blocks(README) if block.info == RUN)
    done = installation.run("python", "-W", "error", "-", cwd=crowded, code=example.code, **environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.dspy
@HERE
def test_a_worker_with_the_callback_runs(
    installation: Installation, crowded: Path, seeded_registry: Path, environment: dict[str, str]
) -> None:
    done = installation.run("python", "-", seeded_registry, cwd=crowded, code=WORKER, **environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@HERE
def test_pickles_and_new_processes_work(
    installation: Installation, crowded: Path, seeded_registry: Path, environment: dict[str, str]
) -> None:
    (crowded / "program.py").write_text(PICKLES)
    done = installation.run("python", "-W", "error", "program.py", seeded_registry, cwd=crowded, **environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.parametrize("command", [["dspy-registry"], ["python", "-W", "error", "-m", "dspy_registry"]])
@HERE
def test_the_command_line_serves_and_answers(
    installation: Installation, crowded: Path, tmp_path: Path, command: list[str], environment: dict[str, str]
) -> None:
    path = str(tmp_path / "registry")
    program, *arguments = [*command, "serve", "--path", path]
    daemon = subprocess.Popen(
        [installation.bin / program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=crowded,
        env={**clean_environment(), **environment},
    )
    assert daemon.stderr is not None
    try:
        assert any(" serves " in line for line in daemon.stderr)
        got = installation.run(*command, "get", "predict", "--json", "--path", path, cwd=crowded, **environment)
        assert (got.returncode, got.stderr) == (0, "")
        assert json.loads(got.stdout)["name"] == "dspy.Predict"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stderr.close()


@pytest.mark.full
def test_nothing_of_the_checkout_is_seen(installation: Installation, crowded: Path) -> None:
    code = "import dspy_registry.readers as room; print(room.__file__)"
    seen = installation.run("python", "-", cwd=crowded, code=code).stdout
    assert seen.startswith(str(installation.packages))
