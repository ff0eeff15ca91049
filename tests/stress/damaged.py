"""A registry that is to be damaged, everything that can be asked of it, and the judgement of the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter, UnknownModuleError
from dspy_registry.registry_store.check.checker import check, check_apart
from dspy_registry.registry_store.layers import Layer
from tests.stress.apart import asked
from tests.stress.oracle import AFTERWARDS, complaint
from tests.support.usage_helpers import batches, merge

NAMES: Final = ("dspy.Predict", "dspy.ReAct", *(f"a.M{number}" for number in range(12)), "a.Large", "a.Layered")
ALIASES: Final = ("cot", "seven", "eight", "predict", "m3")
CAPABILITIES: Final = ("reasoning", "x", "y", "z")
CATEGORIES: Final = ("mine", "one", "two", "unknown")
MISSING: Final = "nothing"
_ERROR: Final = "error "
_LOSS: Final = "Acknowledged changes are missing"
"""The word shows that a commit is gone: `check` and the writer say so. What is read is then the state before it."""

Answers = dict[str, str]


def make(folder: Path) -> None:
    """Something of everything that a registry can hold."""
    with RegistryWriter(folder) as writer:
        commit = writer.store.committer.commit
        writer.register_modules(
            [ModuleInfo(f"a.M{n}", category=("one", "two")[n % 2], metadata={"text": f"m{n}" * 60}) for n in range(12)]
        )
        for duration in range(20):
            writer.register_module(ModuleInfo("a.M1", estimated_duration=duration, capabilities=("x",)))
        writer.register_module(ModuleInfo("a.Large", metadata={"text": "large" * 3000}))
        writer.set_implications({"x": ("y",), "y": ("z",)})
        for alias, name in (("cot", "dspy.ChainOfThought"), ("seven", "a.M7"), ("eight", "a.M8")):
            writer.set_alias(alias, name)
        writer.register_module(ModuleInfo("a.Gone"))
        writer.unregister_module("a.Gone")
        commit(lambda draft: draft.declare("a.Layered", Layer("manifest:b.toml", {"category": "mine"})))
        commit(lambda draft: draft.declare("a.Layered", Layer("discovered", {"metadata": {"a": 1}})))
        merge(writer, batches([("a.M1", 5.0), ("a.M1", 6.0), ("a.M2", 9.0), ("dspy.Predict", 7.0)]))
        writer.register_module(ModuleInfo("dspy.Predict", category="one"))


def answers(folder: Path, problems: list[str]) -> Answers:
    """Every question with its answer, or the kind of the error. Errors that are not ours are problems."""
    found: Answers = {}

    def ask(label: str, question: Callable[[], Any]) -> None:
        try:
            found[label] = repr(question())
        except UnknownModuleError:
            found[label] = MISSING
        except Exception as error:
            found[label] = f"{_ERROR}{type(error).__name__}"
            if (wrong := complaint(error)) and len(problems) < 8:
                problems.append(f"{label}: {wrong}")

    try:
        registry = Registry(folder)
    except Exception as error:
        if wrong := complaint(error):
            problems.append(f"a reader opens: {wrong}")
        return {"open": f"{_ERROR}{type(error).__name__}"}
    with registry:
        _ask_all(registry, ask)
    return found


def _ask_all(registry: Registry, ask: Callable[[str, Callable[[], Any]], None]) -> None:
    ask("revision", lambda: registry.revision)
    ask("list", lambda: [name for name in registry if name != AFTERWARDS])
    for name in NAMES:
        ask(f"record {name}", lambda name=name: registry.describe(name))
        ask(f"usage {name}", lambda name=name: _calls(registry, name))
        ask(f"history {name}", lambda name=name: [stored.provenance.version for stored in registry.history(name)])
    for alias in ALIASES:
        ask(f"alias {alias}", lambda alias=alias: registry.get_module(alias).name)
    for word in CAPABILITIES:
        ask(f"capability {word}", lambda word=word: registry.find_by_capability(word))
    for word in CATEGORIES:
        ask(f"category {word}", lambda word=word: [n for n in registry.find_by_category(word) if n != AFTERWARDS])
    ask("snapshot", lambda: _of_a_snapshot(registry))


def _calls(registry: Registry, name: str) -> int:
    """Where there is no row, there is nothing, as there is where a record is missing."""
    calls = registry.usage(name).calls
    if not calls:
        raise UnknownModuleError(name)
    return calls


def _of_a_snapshot(registry: Registry) -> Any:
    with registry.snapshot() as snapshot:
        return len([change for change in snapshot.changes_since(0) if change.revision <= 20]), snapshot.calls_lost()


def look(folder: Path) -> dict[str, Any]:
    """What a reader, the check, and a writer say of a folder. For a process of its own."""
    problems: list[str] = []
    read = answers(folder, problems)
    named = _check(folder, problems)
    told: dict[str, Any] = {"read": read, "named": named}
    log = Logged()
    logging.getLogger("dspy_registry").addHandler(log)
    try:
        with RegistryWriter(folder) as writer:
            writer.register_module(ModuleInfo(AFTERWARDS))
        told["written"] = True
    except Exception as error:
        told["written"] = False
        told["refusal"] = f"{type(error).__name__}: {error}"
        if wrong := complaint(error):
            problems.append(f"a writer: {wrong}")
    told["read after"] = answers(folder, problems)
    told["named after"] = _check(folder, problems)
    told["problems"] = problems
    told["is loss told"] = any(_LOSS in line for line in named) and any(_LOSS in line for line in log.errors)
    return told


class Logged(logging.Handler):
    """The errors that a writer logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(record.getMessage())


def _check(folder: Path, problems: list[str]) -> list[str]:
    try:
        return [str(violation) for violation in check(folder)]
    except RegistryError as error:
        return [f"{type(error).__name__}: {error}"]
    except (lmdb.Error, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        problems.append(f"check: {complaint(error)}")
        return ["an error that is not ours"]


def wrong_answers(read: Answers, sound: Answers) -> dict[str, str]:
    """Those that are neither right, nor an error, nor nothing; of answers to all questions, or of the opening."""
    if set(read) == {"open"}:
        return {}
    return {
        key: answer
        for key, answer in read.items()
        if answer != sound[key] and answer != MISSING and not answer.startswith(_ERROR) and key != "revision"
    }


def missing_answers(read: Answers, sound: Answers) -> dict[str, str]:
    return {key: answer for key, answer in read.items() if answer == MISSING and answer != sound.get(key)}


def earlier_records(folder: Path) -> list[str]:
    """The answers that records gave before they were replaced."""
    with Registry(folder) as registry:
        return [repr(stored) for name in NAMES for stored in registry.history(name)]


def judged(
    folder: Path,
    sound: Answers,
    *,
    may_end: bool = False,
    may_miss: bool = False,
    earlier: Sequence[str] = (),
) -> tuple[list[str], str]:
    """The problems, and what became of it in a word. `may_end`: LMDB's pages are damaged, which may end a process.

    `may_miss`: nothing else in the registry could tell that something is not there. `earlier` are records that may be
    read where a page was exchanged for an old one: pages have no checksum, so only the check can tell, and must.
    """
    told, ended = asked(lambda: look(folder))
    if ended:
        return _ended(folder, ended, may_end)
    problems: list[str] = list(told["problems"])
    if told["is loss told"]:
        return problems, "a lost commit is told"
    for when in ("", " after"):
        read, named = told[f"read{when}"], told[f"named{when}"]
        wrong, missing = wrong_answers(read, sound), missing_answers(read, sound)
        back = _went_back(read, sound)
        records = {key: answer for key, answer in wrong.items() if key.startswith("record ") and answer not in earlier}
        if records:
            problems.append(f"wrong records are read{when}: {_some(records)}")
        if not named and (wrong or back or (missing and not may_miss)):
            problems.append(f"check is content{when}, and yet: {back} {_some({**wrong, **missing})}")
    outcome = "refused" if not told["written"] else "named" if told["named after"] else "harmless"
    return problems, outcome


def _went_back(read: Answers, sound: Answers) -> str:
    revision = read.get("revision", "")
    went_back = revision.isdigit() and int(revision) < int(sound["revision"])
    return f"revision {revision} of {sound['revision']}" if went_back else ""


def _ended(folder: Path, ended: str, may_end: bool) -> tuple[list[str], str]:
    if not ended.startswith("it died of SIG"):
        return [f"the process that looked: {ended}"], "failed"
    try:
        named = [str(violation) for violation in check_apart(folder)]
    except RegistryError as error:
        named = [str(error)]
    problems = [] if may_end else [f"a process that looked: {ended}"]
    if not named:
        problems.append(f"check_apart is content, though a process that looked: {ended}")
    return problems, f"ended by {ended.split()[-1]}"


def _some(found: dict[str, str]) -> str:
    shown = [f"{key}: {answer[:100]}" for key, answer in list(found.items())[:3]]
    return f"{'; '.join(shown)} ({len(found)})"
