"""The calls of both clients, as messages. They are checked here, so that they fail as with an embedded writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dspy_registry.registry_store import wire_errors
from dspy_registry.registry_store.arguments import check_callback, typed
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    InvalidModuleError,
    ProtocolError,
    UnknownAliasError,
    UnknownModuleError,
)
from dspy_registry.registry_store.labels import LabelUpdate
from dspy_registry.registry_store.policy import Policy, check_pattern, check_policy
from dspy_registry.registry_store.program_rows import cut
from dspy_registry.registry_store.protocol import (
    PART_BYTES,
    Answer,
    Applied,
    ApplyDiscovery,
    DaemonStatus,
    Done,
    Failed,
    OpenCircuit,
    Part,
    Progress,
    Publish,
    ReadStatus,
    Register,
    RegisterMany,
    Release,
    RemoveAlias,
    Rename,
    ReportedOutcome,
    ReportOutcomes,
    ReportUsage,
    ResetCircuit,
    ResetUsage,
    SetAlias,
    SetImplications,
    SetLabels,
    SetPolicy,
    Status,
    SteerRollout,
    Unregister,
    Versioned,
    frame,
)
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.registry_store.validation import (
    check_expected_version,
    check_version,
    is_time_limit,
    name_problems,
    stored_name_problems,
    validate_encoded,
)
from dspy_registry.registry_store.vocabulary import Vocabulary, as_implications
from dspy_registry.writer import labels, rollouts
from dspy_registry.writer.daemon.batch_upload import batch_problem
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.programs import Publication, Published, check_publication
from dspy_registry.writer.reconcile import Outcome, check_report
from dspy_registry.writer.registry_writer import refuse_batch
from dspy_registry.writer.rollouts import BEGIN, RolloutRequest

if TYPE_CHECKING:
    from dspy_registry.writer.discovery.report import DiscoveryReport


class Call:
    """A call: a message without its `id` and `oldest`. Two calls with equal content are equal."""

    __slots__ = ("arguments", "kind", "modules", "progress")

    def __init__(
        self,
        kind: type[msgspec.Struct],
        arguments: tuple[Any, ...] = (),
        modules: Sequence[bytes] = (),
        progress: Progress | None = None,
    ) -> None:
        self.kind = kind
        self.arguments = arguments
        self.modules = modules
        self.progress = progress

    def __repr__(self) -> str:
        return f"Call({self.kind.__name__})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Call)
            and self.kind is other.kind
            and self.arguments == other.arguments
            and self.modules == other.modules
        )

    __hash__ = None  # type: ignore[assignment]  # compared, never used as a key

    @property
    def is_change(self) -> bool:
        """Whether it asks for a change, so that it must not be carried out twice."""
        return self.kind not in _NO_CHANGES

    @property
    def fails_when_repeated(self) -> bool:
        """Whether a repetition fails because the first call succeeded. Any other call can be repeated."""
        if self.kind in (Register, Publish):
            return self.arguments[-1] is not None
        return self.kind in (Unregister, RemoveAlias, Rename, SetLabels)

    def frames(self, request: int, oldest: int, repeats: tuple[int, ...] = ()) -> Iterator[bytes]:
        """The messages to send, framed. `repeats` (see the protocol) is for calls that fail when repeated."""
        for part in _parts(self.modules):
            yield frame(part)
        numbers = (request, oldest) if self.is_change else (request,)
        yield frame(self.kind(*numbers, *self.arguments, *((repeats,) if repeats else ())))


_NO_CHANGES: Final = frozenset((ReadStatus, ReportUsage, ReportOutcomes, OpenCircuit, ResetCircuit))


def _parts(modules: Sequence[bytes]) -> Iterator[Part]:
    part: list[bytes] = []
    size = 0
    for module in modules:
        if size + len(module) > PART_BYTES and part:
            yield Part(part)
            part, size = [], 0
        part.append(module)
        size += len(module)
    if part:
        yield Part(part)


# Making calls


@typed
def register(info: ModuleInfo, expected_version: int | None) -> Call:
    """Raises InvalidModuleError, InvalidArgumentError."""
    check_expected_version(expected_version)
    return Call(Register, (validate_encoded(info)[1], expected_version))


@typed
def register_many(infos: Iterable[ModuleInfo], progress: Progress | None) -> Call:
    """Raises one InvalidModuleError naming what is wrong with every module."""
    check_callback("progress", progress)
    modules: list[bytes] = []
    problems: list[str] = []
    for info in infos:
        try:
            modules.append(validate_encoded(info)[1])
        except InvalidModuleError as error:
            modules.append(b"")
            problems.extend(f"{error.subject}: {problem}" for problem in error.problems)
    refuse_batch(len(modules), problems)
    _refuse_too_large(modules)
    return Call(RegisterMany, (len(modules),), modules, progress)


@typed
def publish(publication: Publication, document: bytes, expected_version: int | None = None) -> Call:
    """The document is sent before it, in pieces; empty: it is stored already. Raises what `check_publication` does."""
    check_publication(publication, len(document), expected_version)
    pieces = cut(document)
    return Call(Publish, (len(pieces), encode(publication), expected_version), pieces)


@typed
def unregister(name: str) -> Call:
    """Raises UnknownModuleError for a malformed name."""
    _refuse_impossible(name)
    return Call(Unregister, (name,))


@typed
def set_alias(alias: str, name: str) -> Call:
    """Raises InvalidModuleError for a malformed alias, UnknownModuleError for a malformed name."""
    problems = name_problems(alias)
    if problems:
        raise InvalidModuleError(f"alias {alias!r}", problems)
    _refuse_impossible(name)
    return Call(SetAlias, (alias, name))


@typed
def remove_alias(alias: str) -> Call:
    """Raises UnknownAliasError for a malformed alias."""
    _refuse_impossible(alias, UnknownAliasError)
    return Call(RemoveAlias, (alias,))


@typed
def release(name: str) -> Call:
    """Raises UnknownModuleError for a malformed name."""
    _refuse_impossible(name)
    return Call(Release, (name,))


@typed
def rename(old: str, new: str) -> Call:
    """Raises UnknownModuleError for a malformed old name, InvalidModuleError for a malformed new one."""
    _refuse_impossible(old)
    problems = name_problems(new)
    if problems:
        raise InvalidModuleError(f"{old!r} as {new!r}", problems)
    return Call(Rename, (old, new))


@typed
def set_labels(updates: Iterable[LabelUpdate]) -> Call:
    """Raises one InvalidArgumentError naming what is wrong with every update by itself."""
    return Call(SetLabels, (msgspec.msgpack.encode(labels.checked(updates)),))


@typed
def set_implications(implications: Mapping[str, Sequence[str]]) -> Call:
    """Raises VocabularyError for a malformed vocabulary."""
    words = as_implications(implications)
    Vocabulary(words)
    return Call(SetImplications, (words,))


@typed
def apply_discovery(report: DiscoveryReport) -> Call:
    """The report's modules are sent before it, in parts."""
    check_report(report)
    modules = [msgspec.msgpack.encode(info) for info in report.modules]
    _refuse_too_large(modules)
    rest = msgspec.msgpack.encode(msgspec.structs.replace(report, modules=()))
    return Call(ApplyDiscovery, (len(modules), rest), modules)


@typed
def reset_usage(name: str, version: int | None) -> Call:
    """Raises UnknownModuleError for a malformed name, InvalidArgumentError for what is no version."""
    check_version(version)
    _refuse_impossible(name)
    return Call(ResetUsage, (name, version))


@typed
def set_policy(pattern: str, policy: Policy) -> Call:
    """Raises InvalidArgumentError for a malformed pattern or policy."""
    check_policy(pattern, policy)
    return Call(SetPolicy, (pattern, policy))


@typed
def remove_policy(pattern: str) -> Call:
    """Raises InvalidArgumentError for a malformed pattern."""
    check_pattern(pattern)
    return Call(SetPolicy, (pattern, None))


@typed
def start_rollout(name: str, version: int, label: str, plan: Plan | None) -> Call:
    """Raises one InvalidArgumentError naming all that is wrong with the rollout by itself."""
    return _rollout(RolloutRequest(name, label, BEGIN, version, plan or Plan()))


@typed
def steer_rollout(name: str, action: str, label: str) -> Call:
    """Raises one InvalidArgumentError naming all that is wrong with the request by itself."""
    return _rollout(RolloutRequest(name, label, action))


@typed
def report_outcomes(outcomes: tuple[ReportedOutcome, ...]) -> Call:
    """How calls ended, for health."""
    return Call(ReportOutcomes, (outcomes,))


@typed
def open_circuit(name: str, seconds: float, version: int | None) -> Call:
    """Raises UnknownModuleError for a malformed name, InvalidArgumentError for seconds or a version."""
    check_version(version)
    if not is_time_limit(seconds):
        raise InvalidArgumentError(f"seconds is {seconds!r}, it must be a number of seconds above 0.")
    _refuse_impossible(name)
    return Call(OpenCircuit, (name, float(seconds), version))


@typed
def reset_circuit(name: str, version: int | None) -> Call:
    """Raises UnknownModuleError for a malformed name, InvalidArgumentError for what is no version."""
    check_version(version)
    _refuse_impossible(name)
    return Call(ResetCircuit, (name, version))


@typed
def read_status() -> Call:
    """The state of the daemon: its pid, revision, queue lengths and errors."""
    return Call(ReadStatus)


@typed
def report_usage(batch: bytes) -> Call:
    """A batch of usage."""
    return Call(ReportUsage, (batch,))


def _rollout(request: RolloutRequest) -> Call:
    return Call(SteerRollout, (msgspec.msgpack.encode(rollouts.checked(request)),))


def _refuse_impossible(name: str, error: type[UnknownModuleError] = UnknownModuleError) -> None:
    if stored_name_problems(name):
        raise error(name)


def _refuse_too_large(modules: Sequence[bytes]) -> None:
    problem = batch_problem(len(modules), sum(map(len, modules)), Bounds())
    if problem:
        raise InvalidModuleError("a batch", (problem,))


# Reading answers


def visible_in(answer: Answer) -> int:
    """The revision in which a change is visible. Raises the daemon's error."""
    if isinstance(answer, Done):
        return answer.revision
    raise _unexpected(answer)


def outcome(answer: Answer) -> Outcome:
    """What a discovery report changed. Raises the daemon's error."""
    if isinstance(answer, Applied):
        return Outcome(answer.revision, list(answer.declared), list(answer.withdrawn), list(answer.refused))
    raise _unexpected(answer)


def published(answer: Answer, publication: Publication) -> Published:
    """What a publication did. Raises the daemon's error."""
    if isinstance(answer, Versioned):
        return Published(answer.revision, publication.name, answer.version, publication.digest.hex())
    raise _unexpected(answer)


def told_status(answer: Answer) -> DaemonStatus:
    """The state of the daemon: its pid, revision, queue lengths and errors. Raises the daemon's error."""
    if isinstance(answer, Status):
        return answer.status
    raise _unexpected(answer)


def _unexpected(answer: Answer) -> Exception:
    if isinstance(answer, Failed):
        return wire_errors.unpack(answer)
    return ProtocolError(f"the daemon answered with {type(answer).__name__}, which is not an answer to this request.")
