"""Programs in workers: fresh when the label moves, the old one serving meanwhile, and whatever fails is told."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    NoProgramError,
    ProgramRefusedError,
    Programs,
    Registry,
    RegistryWriter,
    Router,
    UnknownModuleError,
)
from dspy_registry.integrations.dspy import Routed, publish
from dspy_registry.readers import programs as programs_module
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.program_document import MAX_PROGRAM_BYTES
from dspy_registry.writer.restore import restore
from tests.support.compiled_programs import ALLOW, NAME, Qa, compiled, model, plain_document, publication
from tests.support.daemon_process import daemon
from tests.support.reporting import NotingReporter

LIVE = f"{NAME}@live"


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as opened:
        yield opened


@pytest.fixture
def programs(writer: RegistryWriter, registry_folder: Path) -> Iterator[Programs]:
    with Registry(registry_folder) as registry:
        yield Programs(registry, ALLOW)


def send(writer: Any, instructions: str, **given: Any) -> int:
    """Publish a program with these instructions under the label `live`."""
    return publish(compiled(Qa(), instructions), NAME, client=writer, label="live", **given).version


def instructions_of(program: Any) -> str:
    return str(program.qa.signature.instructions)


def wait_for_builds(programs: Programs) -> None:
    """Until no program is being built. A failed test ends by its time limit."""
    for build in list(programs._builds.values()):
        build.done.wait()


def test_a_program_is_given_by_version_label_and_name(writer: RegistryWriter, programs: Programs) -> None:
    first, second = send(writer, "one"), send(writer, "two")
    assert instructions_of(programs[NAME]) == "one"  # in force: the first publication
    assert instructions_of(programs[f"{NAME}@{first}"]) == "one"
    assert instructions_of(programs[f"{NAME}@{second}"]) == "two"
    assert instructions_of(programs[LIVE]) == "two"
    assert programs[LIVE] is programs.get(LIVE, key="any")
    assert list(programs) == [NAME]
    assert (len(programs), NAME in programs, "dspy.Predict" in programs, 3 in programs) == (1, True, False, False)


def test_the_old_program_serves_until_the_new_one_is_built(
    writer: RegistryWriter, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(writer, "old")
    old = programs[LIVE]
    may_build, builds = threading.Event(), []
    real = programs_module.rebuild

    def slow(*given: Any) -> Any:
        builds.append(given)
        may_build.wait()
        return real(*given)

    monkeypatch.setattr(programs_module, "rebuild", slow)
    version = send(writer, "new")
    assert [programs[LIVE] is old for _ in range(50)] == [True] * 50
    assert programs.status()[0].is_building
    may_build.set()
    wait_for_builds(programs)
    assert instructions_of(programs[LIVE]) == "new"
    assert len(builds) == 1  # single-flight
    status = programs.status()[0]
    assert (status.serving, status.wanted, status.problem) == (version, version, "")


def test_a_build_that_got_no_thread_is_begun_at_the_next_look_up(
    writer: RegistryWriter, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(writer, "old")
    old = programs[LIVE]

    def no_thread(self: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        send(writer, "new")
        assert programs[LIVE] is old
        assert not programs.status()[0].is_building
    programs[LIVE]
    wait_for_builds(programs)
    assert instructions_of(programs[LIVE]) == "new"


def test_an_edit_of_one_version_does_not_change_another(writer: RegistryWriter, programs: Programs) -> None:
    first, second = send(writer, "one"), send(writer, "two")
    old, new = programs[f"{NAME}@{first}"], programs[f"{NAME}@{second}"]
    assert old.qa.demos == new.qa.demos
    held = copy.deepcopy(new.dump_state())
    old.qa.demos[0]["question"] = "another"
    old.qa.demos.append({"question": "more"})
    old.qa.signature.instructions = "edited"
    old.qa.signature.fields["answer"].json_schema_extra["desc"] = "edited"
    assert new.dump_state() == held


def test_the_first_look_ups_of_many_threads_build_once(
    writer: RegistryWriter, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(writer, "one")
    real, builds = programs_module.rebuild, []
    monkeypatch.setattr(programs_module, "rebuild", lambda *given: (builds.append(given), real(*given))[1])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(programs[LIVE])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 8
    assert all(each is found[0] for each in found)


def test_i33_a_program_that_cannot_be_built_leaves_the_old_one_and_is_told(
    writer: RegistryWriter, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    first = send(writer, "good")
    good = programs[LIVE]
    unfit = plain_document(class_path="tests.support.compiled_programs:Nothing")
    second = writer.publish_program(publication(unfit, label="live"), unfit).version
    with caplog.at_level(logging.ERROR, logger="dspy_registry"):
        assert programs[LIVE] is good
        wait_for_builds(programs)
        assert [programs[LIVE] is good for _ in range(5)] == [True] * 5
    status = programs.status()[0]
    assert (status.serving, status.wanted) == (first, second)
    assert "Nothing" in status.problem
    assert sum("goes on serving" in record.getMessage() for record in caplog.records) == 1
    assert any(f"version {second} cannot serve {LIVE}; " in record.getMessage() for record in caplog.records)
    writer.set_label(NAME, "live", first)
    assert programs[LIVE] is good
    assert programs.status()[0].problem == ""
    with pytest.raises(ProgramRefusedError):
        programs[f"{NAME}@{second}"]


def test_a_name_without_a_program_is_a_key_error(
    writer: RegistryWriter, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoProgramError, match=r"^dspy\.Predict is version 1, which has no program"):
        programs["dspy.Predict"]
    assert "version 1 cannot serve dspy.Predict: it has no program. Publish one" in caplog.text
    with pytest.raises(UnknownModuleError):
        programs["acme.Nobody"]
    assert programs.get("dspy.Predict") is None
    assert programs.get("acme.Nobody", "none") == "none"
    send(writer, "later")
    assert instructions_of(programs[LIVE]) == "later"


def test_a_weighted_label_gives_each_key_its_version(writer: RegistryWriter, programs: Programs) -> None:
    first, second = send(writer, "one"), send(writer, "two")
    writer.set_label(NAME, "live", {first: 50, second: 50})
    words = {first: "one", second: "two"}
    for key in ("a", "b", "c", "d", "e", "f"):
        programs.get(LIVE, key=key)
        wait_for_builds(programs)
        wanted = programs._registry.resolve(LIVE, key=key).version
        assert instructions_of(programs.get(LIVE, key=key)) == words[wanted]


def test_packages_are_names(programs: Programs) -> None:
    for wrong in ("acme", ("acme.",), ("",), ("a b",)):
        with pytest.raises(InvalidArgumentError):
            Programs(programs._registry, wrong)


def test_a_restored_registry_gives_its_own_programs(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        send(writer, "before")
    backup(tmp_path / "copy", registry_folder)
    with RegistryWriter(registry_folder) as writer:
        version = send(writer, "between")
    with Registry(registry_folder) as registry:
        programs = Programs(registry, ALLOW)
        assert instructions_of(programs[LIVE]) == "between"
        restore(tmp_path / "copy", registry_folder)
        with RegistryWriter(registry_folder) as writer:
            assert send(writer, "after") == version  # the same number for another program
            registry.snapshot().close()
            assert instructions_of(programs[LIVE]) == "after"


def test_look_ups_of_records_do_not_read_programs(writer: RegistryWriter, registry_folder: Path) -> None:
    document = plain_document("large", MAX_PROGRAM_BYTES // 2)
    writer.publish_program(publication(document, label="live"), document)
    with Registry(registry_folder) as registry:
        registry.get_module(LIVE)
        registry.find(capabilities=("reasoning",))
        mapped = Path("/proc/self/smaps").read_text(encoding="ascii").split(str(registry_folder / "data.mdb"))[1:]
        resident = sum(int(each.split("Rss:")[1].split()[0]) for each in mapped) * 1024
        assert resident < len(document) or os.environ.get("DSPY_REGISTRY_SAME_PROCESS")


def test_a_router_chooses_among_programs_and_follows_their_labels(writer: RegistryWriter, programs: Programs) -> None:
    send(writer, "one")
    live = Programs(programs._registry, ALLOW, names=(LIVE,))
    assert (list(live), len(live)) == ([LIVE], 1)
    router = Router(programs._registry, live)
    routed = copy.deepcopy(Routed(programs._registry, live))
    try:
        with dspy.context(lm=model()):
            assert router.call(arguments={"question": "?"}).value.answer == "yes"
            second = send(writer, "two")
            live[LIVE]
            wait_for_builds(live)
            result = router.call(arguments={"question": "?"})
            assert (result.value.answer, result.version) == ("yes", second)
            assert routed(question="?").answer == "yes"
    finally:
        router.reporter.close()
        routed.router.reporter.close()
    assert pickle.loads(pickle.dumps(live)).allow == ALLOW


def test_a_routed_call_counts_for_the_version_that_served_it(writer: RegistryWriter, programs: Programs) -> None:
    first = send(writer, "one")
    registry = programs._registry
    live = Programs(registry, ALLOW, names=(LIVE,))
    with NotingReporter(registry.path) as reporter, dspy.context(lm=model()):
        router = Router(registry, live, reporter)
        assert router.call(arguments={"question": "?"}).version == first
        live.allow = ("none.of_these",)  # the next version cannot be built here, so the first goes on
        second = send(writer, "two")
        live[LIVE]
        wait_for_builds(live)
        result = router.call(arguments={"question": "?"})
        assert (registry.resolve(LIVE).version, live.serving(LIVE)[1]) == (second, first)
        assert (result.version, result.attempts[0].version, reporter.calls[-1][8]) == (first, first, first)


def test_a_router_passes_over_programs_that_this_process_cannot_have(
    writer: RegistryWriter, programs: Programs, registry_folder: Path
) -> None:
    send(writer, "one")
    writer.register_module(ModuleInfo("acme.Plain", estimated_duration=1))
    registry = programs._registry
    with NotingReporter(registry_folder) as reporter, dspy.context(lm=model()):
        several = Router(registry, Programs(registry, ALLOW, names=("acme.Plain", LIVE)), reporter)
        for result in (
            several.call(arguments={"question": "?"}),
            asyncio.run(several.acall(arguments={"question": "?"})),
        ):
            assert [(each.name, each.kind) for each in result.attempts] == [(NAME, "ok")]
        with pytest.raises(NoProgramError):
            Router(registry, Programs(registry, ALLOW, names=("acme.Plain",)), reporter).call()
        with pytest.raises(ProgramRefusedError):
            Router(registry, Programs(registry, ("none.of_these",), names=(LIVE,)), reporter).call()
    assert {call[0] for call in reporter.calls} == {NAME}


# A daemon and forked workers


def test_forked_workers_follow_the_daemon(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client:
        send(client, "one")
        with Registry(registry_folder) as registry:
            programs = Programs(registry, ALLOW)
            assert instructions_of(programs[LIVE]) == "one"
            workers = [_Worker(programs) for _ in range(2)]
            assert [worker.ask() for worker in workers] == ["one", "one"]
            send(client, "two")
            assert [worker.ask(until="two") for worker in workers] == ["two", "two"]
            assert [worker.end() for worker in workers] == [0, 0]


class _Worker:
    """A forked process that tells which program it gives."""

    def __init__(self, programs: Programs) -> None:
        self._ask_from, self._ask = os.pipe()
        self._told, self._tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._serve(programs)

    def _serve(self, programs: Programs) -> None:
        status = 1
        try:
            with dspy.context(lm=None):
                while (wanted := os.read(self._ask_from, 64).decode()) != "end":
                    found = instructions_of(programs[LIVE])
                    while wanted != "now" and found != wanted:
                        wait_for_builds(programs)
                        found = instructions_of(programs[LIVE])
                    os.write(self._tell, found.encode())
            status = 0
        finally:
            os._exit(status)

    def ask(self, until: str = "now") -> str:
        os.write(self._ask, until.encode())
        return os.read(self._told, 64).decode()

    def end(self) -> int:
        os.write(self._ask, b"end")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
