"""Commands that are typed right after `dspy-registry serve &`, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import COMMAND, refusal, run

PATIENTLY = {"DSPY_REGISTRY_WAIT": "60"}


@contextmanager
def starting(path: Path) -> Iterator[None]:
    """`dspy-registry serve`, of which nobody waits until it is ready."""
    process = subprocess.Popen([*COMMAND, "serve", "--path", str(path)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()  # perhaps before it has a handler for that
        process.wait(30)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("route", "ColBERTv2", "--input-size", "5000"), {"name": "dspy.ColBERTv2", "timeout": 900}),
        (("register", "--name", "acme.X"), {"names": ["acme.X"]}),
        (("alias", "list"), {}),
        (("check",), {"violations": []}),
    ],
)
def test_a_command_right_after_serve_waits_for_it(
    arguments: tuple[str, ...], expected: dict[str, object], tmp_path: Path
) -> None:
    folder = tmp_path / "registry"
    with starting(folder):
        done = run(*arguments, "--json", "--path", folder, **PATIENTLY)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected.items() <= json.loads(done.stdout).items()


def test_what_is_pasted_from_readme_prints_the_answer(tmp_path: Path) -> None:
    """In one shell, as README has it."""
    program = " ".join(COMMAND)
    script = f"{program} serve & {program} route ColBERTv2 --input-size 5000; status=$?; kill $!; wait $!; exit $status"
    environment = {**os.environ, **PATIENTLY, "DSPY_REGISTRY": str(tmp_path / "registry")}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "900 ms" in done.stdout


def test_a_registry_that_never_comes_is_reported_after_the_wait(tmp_path: Path) -> None:
    for command in (("list",), ("register", "--name", "acme.X")):
        done = run(*command, "--json", "--path", tmp_path / "none", DSPY_REGISTRY_WAIT="0.2")
        assert done.returncode == 1
        assert json.loads(done.stderr)["error"]["type"] in ("RegistryNotFoundError", "WriterUnavailableError")


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_REGISTRY_WAIT", text)
    status, error = refusal("list")
    assert (status, error["type"]) == (2, "InvalidArgumentError")
    assert "DSPY_REGISTRY_WAIT" in error["message"]
