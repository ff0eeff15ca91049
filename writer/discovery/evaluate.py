"""The result of one root, from the traces of the attempts at it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from dspy_registry.registry_store.errors import InvalidModuleError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.validation import validate_module
from dspy_registry.writer.discovery.facts import shortest_name
from dspy_registry.writer.discovery.infer import infer, one_line
from dspy_registry.writer.discovery.probe_run import At, End, Failed, Seen, Trace, Version

MAX_REASON: Final = 500


class DiscoveryFailure(msgspec.Struct, frozen=True):
    """What could not be discovered: the dotted name of a package, module or class, and the reason."""

    package: str
    reason: str


class Evaluation(msgspec.Struct):
    """The result of one root.

    `failures` has reasons by name. `looked_through`: to the end, though parts may have failed. `absent`: not installed.
    """

    modules: list[ModuleInfo]
    failures: dict[str, str]
    looked_through: bool
    absent: bool
    version: str | None


def evaluate(root: str, traces: Sequence[Trace], cut_short: str) -> Evaluation:
    """What was found under `root`. `cut_short` is the reason for parts that were not finished."""
    ended = next((i for i, trace in enumerate(traces) if _has(trace, End)), None)
    # Attempts after a complete one left out more modules.
    counted = traces if ended is None else traces[: ended + 1]
    failures, stuck, absent = _failures(root, counted, cut_short)
    for trace in counted:
        if trace.garbled is not None:
            failures[root] = f"left {trace.garbled}"
    if ended is not None:
        failures = {**stuck, **failures}
    elif counted and root not in failures:
        where, why = next(reversed(stuck.items()), (root, cut_short))
        failures[root] = why if where == root else f"{where}: {why}"
    version = _version(counted)
    looked_through = ended is not None and root not in failures
    modules = _modules(root, counted, version, failures)
    shown = {one_line(name, MAX_REASON): why for name, why in failures.items()}
    return Evaluation(modules, shown, looked_through, absent, version)


def _has(trace: Trace, kind: type) -> bool:
    return any(isinstance(record, kind) for record in trace.records)


def _failures(root: str, traces: Iterable[Trace], cut_short: str) -> tuple[dict[str, str], dict[str, str], bool]:
    """What failed, where attempts stopped, and whether the root is not installed.

    A part that failed in one attempt but not in another is not a failure: it depended on the modules left out.
    """
    failed: dict[str, str] = {}
    stuck: dict[str, str] = {}
    passed: set[str] = set()
    absent = False
    for trace in traces:
        failed_here = (r for r in trace.records if isinstance(r, Failed) and _is_within(root, r.name))
        here = {r.name: one_line(r.reason, MAX_REASON) for r in failed_here}
        absent = absent or any(isinstance(r, Failed) and r.absent for r in trace.records)
        reached = [r.module for r in trace.records if isinstance(r, At) and _is_within(root, r.module)]
        if reached and not _has(trace, End):
            stuck[reached.pop()] = _ending(trace.code, cut_short)
        passed.update(name for name in reached if name not in here)
        failed = {**here, **failed}
    gone = {name: why for name, why in failed.items() if name not in passed}
    reported = {n: why for n, why in stuck.items() if n not in passed and n not in gone}
    return gone, reported, absent


def _is_within(root: str, name: str) -> bool:
    """Whether a record may speak of this name: what it says of others was forged by the package."""
    return f"{name}.".startswith(f"{root}.")


def _ending(code: int | None, cut_short: str) -> str:
    return cut_short if code is None else f"importing it ended the process: {exit_text(code)}"


def exit_text(code: int) -> str:
    """A process's exit code in words. A negative code is the signal that killed it."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _version(traces: Iterable[Trace]) -> str | None:
    for trace in traces:
        for record in trace.records:
            if isinstance(record, Version) and record.version:
                return one_line(record.version, 100)
    return None


def _modules(root: str, traces: Iterable[Trace], version: str | None, failures: dict[str, str]) -> list[ModuleInfo]:
    """Each concrete class once, under its public name. A class that cannot be registered is a failure."""
    names: dict[str, set[str]] = {}
    classes: dict[str, Seen] = {}
    for trace in traces:
        for record in trace.records:
            if isinstance(record, Seen) and not record.abstract:
                names.setdefault(record.key, set()).add(record.name)
                classes.setdefault(record.key, record)
    found: dict[str, ModuleInfo] = {}
    for key, seen in classes.items():
        name, aliases = _public_name(seen, names[key])
        try:
            _refuse_strange(seen, root)
            info = _checked(infer(seen, name, aliases, root, root.partition(".")[0], version), root, _declared(seen))
            if name in found and _declared(seen):
                raise ValueError(f"{seen.path} declares a name that {found[name].metadata['class']} has")
            found.setdefault(name, info)
        except (InvalidModuleError, ValueError) as error:
            problems = error.problems if isinstance(error, InvalidModuleError) else (str(error),)
            failures[name] = one_line("; ".join(problems), MAX_REASON)
    return sorted(found.values(), key=lambda info: info.name)


def _public_name(seen: Seen, names: Iterable[str]) -> tuple[str, list[str]]:
    """The name to register it by, which is the declared one if there is one, and its other names in the best place."""
    own = seen.path.rpartition(".")[2]
    best = shortest_name(own, names)
    place = best.rpartition(".")[0]
    name = _declared(seen) or best
    return name, [other for other in names if other != name and other.rpartition(".")[0] == place]


def _declared(seen: Seen) -> str | None:
    return seen.declared.name if seen.declared is not None else None


def _refuse_strange(seen: Seen, root: str) -> None:
    """Raises ValueError for a class of another package: as a second name, it would take that one's place."""
    if root != "dspy" and not _is_within(root, seen.path):
        raise ValueError(f"its class {seen.path} is not one of {root}")


def _checked(info: ModuleInfo, root: str, declared: str | None) -> ModuleInfo:
    """Raises ValueError for a name that is outside the root, or that is neither declared nor an import path.

    A package may declare names for its own classes, and none for those of another.
    """
    if declared is None and not all(part.isidentifier() for part in info.name.split(".")):
        raise ValueError("the name is no import path")
    if not info.name.startswith(f"{root}."):
        raise ValueError(f"the name is not one of {root}")
    return validate_module(info)
