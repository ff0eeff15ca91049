"""`dspy-registry demo`, and that its count of stale reads can count."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, RegistryWriter, UsageReporter
from dspy_registry.demo.processes import Demo, DemoError, Witness
from dspy_registry.demo.reader_process import Reads, Task
from dspy_registry.demo.stages import follow_manifests, observe, start_daemon
from tests.support.command import COMMAND, run, run_process
from tests.support.usage_helpers import wait_until

HAS_DSPY = importlib.util.find_spec("dspy") is not None


@pytest.mark.parametrize(
    "arguments", [("--seconds", "nan"), ("--seconds", "inf"), ("--readers", "100000"), ("--readers", "0")]
)
def test_a_demo_of_absurd_size_is_refused(arguments: tuple[str, str]) -> None:
    done = run("demo", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


@pytest.mark.full
def test_demo_finds_no_stale_read() -> None:
    done = run_process("demo", "--seconds", "2", "--readers", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["failures"], told["stale"]) == ([], 0)
    assert len(told["readers"]) == 2
    for reader in told["readers"]:
        assert reader["reads"] > 0
        assert 0 < reader["p50_ns"] <= reader["p99_ns"]
        assert (reader["stale"], reader["error"]) == (0, None)
    assert told["updates"]["acknowledged"] > 0
    routed = {told["name"]: told for told in told["recommendations"]}["dspy.ColBERTv2"]
    assert (routed["pool_type"], routed["timeout"], routed["prefer_native"]) == ("neural", 900, False)
    check_manifests(told["manifests"])
    for trouble in ("fails", "hangs", "is rate limited"):
        assert 0 < told["outage"][trouble]["reached"] < told["outage"][trouble]["answered"]
    if HAS_DSPY:
        assert told["discovery"]["modules"] > 6
        check_usage(told["usage"])
    else:
        assert told["discovery"] == {"dspy_version": None, "modules": 0}
        assert told["usage"] is None


def check_manifests(told: dict[str, Any]) -> None:
    assert told["visible_after_ms"] > 0
    assert told["corrected_after_ms"] > 0
    declared = told["declared"]
    assert (declared["name"], declared["estimated_duration"]) == ("acme.Digest", 400)
    assert declared["provenance"]["source"] == "manifest:acme.toml"
    assert [(error["file"], error["line"], error["field"]) for error in told["errors"]] == [
        ("acme.toml", 5, "modules[0].requirements.memory")
    ]
    if HAS_DSPY:
        assert told["matched"]["name"].startswith("dspy.Bootstrap")
        assert (told["matched"]["estimated_duration"], told["matched"]["source"]) == (60000, "defaults:acme.toml")
    else:
        assert told["matched"] is None


def check_usage(told: dict[str, Any]) -> None:
    usages = {usage["name"]: usage for usage in told["modules"]}
    assert usages.keys() == {"acme.Digest", "dspy.ChainOfThought", "dspy.Predict"}
    digest, made = usages["acme.Digest"], told["program"]
    assert (digest["calls"], digest["errors"]) == (made["calls"], made["errors"])
    assert digest["error_rate"] == made["errors"] / made["calls"] > 0
    assert usages["dspy.Predict"]["calls"] == made["calls"] - made["errors"] >= 20
    seen = digest["durations"]["normal"]
    assert 0 < seen["p50"] <= seen["p99"]
    assert told["declared"]["timeout"] == 420  # 350 ms, as the corrected manifest says
    assert told["observed"]["timeout"] >= int(seen["p99"] * 1.2)  # more, if one of the last calls was much slower


def test_demo_tells_its_story() -> None:
    done = run_process("demo", "--seconds", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "READS/S" in done.stdout
    assert ", 0 stale, while" in done.stdout
    assert 'routing_recommendation("dspy.ColBERTv2", {input_size: 5000, optimize_latency: false})' in done.stdout
    assert "{pool_type: neural, timeout: 900, prefer_native: false, estimated_cost: 12}" in done.stdout
    assert "manifests.errors     acme.toml:5: modules[0].requirements.memory: 'lots' is not one of" in done.stdout
    assert "demo.Fast, version 1: excluded (health): its circuit is open" in done.stdout
    assert "all calls go there again" in done.stdout
    if HAS_DSPY:
        assert re.search(r"^acme\.Digest +64 +4 +6\.2% .*█$", done.stdout, re.MULTILINE)
        assert "--basis declared: {timeout: 420, estimated_cost: 0.35}" in done.stdout
        assert "--basis observed: {timeout: " in done.stdout
    else:
        assert "going on with the core modules" in done.stdout
        assert "skipped: DSPy is not installed here" in done.stdout


@pytest.mark.full
def test_a_program_that_fails_fails_the_demo(tmp_path: Path) -> None:
    broken = tmp_path / "dspy"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('half installed')\n")
    done = run_process("demo", "--seconds", "0.5", "--json", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert (error["type"], error["message"]) == ("DemoError", "the DSPy program: ImportError: half installed")


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the demo's own: the path of a socket has 107 bytes, and `tmp_path` takes many of them."""
    return tmp_path_factory.mktemp("demo")


@contextmanager
def long_demo(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A demo at the point where its readers read, and its folder."""
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stdout.readline()
        while "reads/s" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        found = re.search(r"serves (\S+)/registry", first)
        assert found, first
        yield process, Path(found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def processes_in(folder: Path) -> dict[int, str]:
    """Command lines of the processes that work in a folder, also when it has been removed, by pid."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(process.joinpath("cwd").readlink()).startswith(str(folder)):
                found[int(process.name)] = process.joinpath("cmdline").read_text()
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def readers_in(folder: Path) -> list[int]:
    return [pid for pid, command in processes_in(folder).items() if "dspy_registry.demo.reader_process" in command]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, short_path: Path) -> None:
    with long_demo(short_path) as (process, folder):
        wait_until(lambda: len(processes_in(folder)) >= 3 or process.poll() is not None, "the demo's processes")
        process.send_signal(number)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == ""
    assert processes_in(folder) == {}
    assert not folder.exists()


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_reader_that_dies_fails_the_demo(short_path: Path) -> None:
    with long_demo(short_path) as (process, folder):
        wait_until(lambda: bool(readers_in(folder)) or process.poll() is not None, "a reader")
        os.kill(readers_in(folder)[0], signal.SIGKILL)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "-9" in process.stderr.read()
    assert processes_in(folder) == {}


# Single stages


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Demo]:
    """A demo whose daemon runs."""
    with ExitStack() as stack:
        demo = Demo(stack, tmp_path, 1.0, 2, quiet=True)
        start_daemon(demo)
        yield demo


@pytest.mark.full
def test_a_manifest_that_does_not_show_fails_the_demo(begun: Demo) -> None:
    name = "dspy.BootstrapFewShot"
    begun.client.register_module(ModuleInfo(name))  # which stands above any manifest, as do a client's aliases
    begun.client.set_alias("digest", "dspy.Predict")
    begun.steady.append(name)
    follow_manifests(begun)
    assert begun.failures == [
        "the alias digest leads to dspy.Predict",
        f"{name} has its estimated_duration from client, not from the rule for dspy.Bootstrap*",
    ]


@pytest.mark.full
@pytest.mark.dspy
def test_statistics_that_disagree_with_the_program_fail_the_demo(begun: Demo) -> None:
    begun.client.register_module(ModuleInfo("acme.Digest"))
    with UsageReporter(begun.registry) as reporter:
        reporter.record("acme.Digest", 1.0)
        assert reporter.flush(30)
    observe(begun)
    (failure,) = begun.failures
    assert failure == "acme.Digest: 64 calls and 4 errors were reported, a reader sees 65 and 4"


def test_a_witness_that_cannot_read_says_why(tmp_path: Path) -> None:
    nothing_there = pytest.raises(DemoError, match="none")
    with closing(Witness(tmp_path / "none", tmp_path, 1)) as witness, nothing_there:
        witness.wait_until_ready()


# The reader process by itself


def reports(path: Path, marks: list[int], tmp_path: Path) -> list[Reads]:
    """What a reader says of a registry when this much is claimed to have been acknowledged."""
    import msgspec

    file = tmp_path / "marks"
    file.write_bytes(b"".join(mark.to_bytes(8, sys.byteorder) for mark in marks))
    task = Task(str(path), str(file), ["acme.X"], ["dspy.Predict"], "demo_arrival", 0.05)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "dspy_registry.demo.reader_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        process.stdin.flush()
        first = process.stdout.readline()
        process.stdin.close()
        lines = [first, *process.stdout]
        assert (process.wait(30), process.stderr.read()) == (0, b"")
    return [msgspec.json.decode(line, type=Reads) for line in lines]


@pytest.mark.parametrize(
    ("marks", "is_stale"),
    [
        ([7, 1], False),
        ([8, 1], True),  # as if an update to 8 had been acknowledged
        ([7, 2], True),  # as if a second module with the capability had been
    ],
)
def test_a_reader_counts_reads_older_than_what_was_acknowledged(
    marks: list[int], is_stale: bool, seeded_registry: Path, tmp_path: Path
) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_modules(
            [ModuleInfo("acme.X", estimated_duration=7), ModuleInfo("acme.Y", capabilities=("demo_arrival",))]
        )
    told = reports(seeded_registry, marks, tmp_path)
    assert all((report.stale > 0) is is_stale and report.error is None for report in told)
    assert all(report.reads > 0 and report.revision == 2 for report in told)


def test_a_reader_that_fails_says_how(tmp_path: Path) -> None:
    (report,) = reports(tmp_path / "none", [1, 0], tmp_path)
    assert report.error is not None
    assert report.error.startswith("RegistryNotFoundError")
