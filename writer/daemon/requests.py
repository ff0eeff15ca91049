"""A client's request: what it stages on a draft, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, overload

import msgspec

from dspy_registry.registry_store import wire_errors
from dspy_registry.registry_store.errors import (
    ConflictError,
    InvalidModuleError,
    LabelConflictError,
    ProtocolError,
    RegistryError,
    UnknownLabelError,
    UnknownModuleError,
)
from dspy_registry.registry_store.labels import LabelUpdate
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import MAX_RECORD_VALUES
from dspy_registry.registry_store.nesting import MANY, excess
from dspy_registry.registry_store.protocol import (
    UNREADABLE,
    Answer,
    Applied,
    ApplyDiscovery,
    ChangeRequest,
    Done,
    Effect,
    Failed,
    Register,
    RegisterMany,
    Release,
    RemoveAlias,
    Rename,
    ResetUsage,
    SetAlias,
    SetImplications,
    SetLabels,
    SetPolicy,
    SteerRollout,
    Unregister,
)
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.validation import validate_encoded
from dspy_registry.writer import labels, overrides, policies, reconcile, rollouts
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.outgoing import Outgoing
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.registry_writer import register_all
from dspy_registry.writer.usage_reset import reset_usage

if TYPE_CHECKING:
    from dspy_registry.writer.discovery.report import DiscoveryReport

_decode_labels = msgspec.msgpack.Decoder(tuple[LabelUpdate, ...]).decode
_decode_module = msgspec.msgpack.Decoder(ModuleInfo).decode

Reply = Callable[["ClientRequest", Answer], None]


class ClientRequest(Work):
    """A change that a client asked for. `reply` hands the answer to its connection.

    `looked_at` of `count` modules are staged so far. The commit thread writes both, and the loop's thread reads them.
    `outgoing` is the way to its client, which notes that it `is_answered`; None: only `reply` answers.
    """

    looked_at = 0
    count = 1
    is_answered = False
    outgoing: Outgoing | None = None

    def __init__(self, client: bytes, message: ChangeRequest, reply: Reply, held_bytes: int = 0) -> None:
        self.client = client
        self.id = message.id
        self.oldest = min(message.oldest, message.id)
        self._reply = reply
        self.held_bytes = held_bytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(client={self.client.hex()}, id={self.id})"

    def success(self, revision: int) -> Effect:
        """Done, visible in this revision."""
        return Done(self.id, revision)

    def failure(self, error: BaseException) -> Failed:
        """The error, to be raised in the client."""
        return wire_errors.pack(self.id, error)

    def answer_at_once(self, answer: Answer) -> None:
        """Send the answer if the client can take it now."""
        if self.outgoing is not None:
            self.outgoing.answer_at_once(self, answer)

    def resolve(self, answer: Answer) -> None:
        """Send the answer."""
        self._reply(self, answer)


class SingleRequest(ClientRequest):
    """A change that came in one message. Its module is decoded when it is staged, so that the loop does not wait."""

    def __init__(self, client: bytes, message: ChangeRequest, reply: Reply, held_bytes: int = 0) -> None:
        super().__init__(client, message, reply, held_bytes)
        self.message = message
        if isinstance(message, Register | Unregister | RemoveAlias | Rename | SetLabels):
            self.repeats = message.repeats

    def stage(self, draft: Draft) -> None:
        """Stage the change."""
        stage_message(draft, self.message)

    def is_in_force(self, draft: Draft, error: RegistryError) -> bool:
        """Whether the registry already has the effect of this message, whose staging has failed."""
        match self.message:
            case Register():
                return isinstance(error, ConflictError) and _is_next_version(self.message, draft)
            case Unregister() | RemoveAlias():
                return isinstance(error, UnknownModuleError)
            case Rename():
                is_there = draft.module(self.message.new_name) is not None
                return isinstance(error, UnknownModuleError) and is_there
            case SetLabels():
                is_of_labels = isinstance(error, LabelConflictError | UnknownLabelError)
                return is_of_labels and labels.is_in_force(draft, decode_labels(self.message.updates))
        return False


class BatchRequest(ClientRequest):
    """A batch of modules to register, which came in parts."""

    def __init__(
        self, client: bytes, message: ChangeRequest, modules: Sequence[bytes], reply: Reply, held_bytes: int = 0
    ) -> None:
        super().__init__(client, message, reply, held_bytes)
        self._modules = modules
        self.count = len(modules)

    def stage(self, draft: Draft) -> None:
        """Register all modules, or raise what is wrong with them."""
        register_all(draft, EncodedModules(self._modules), self.progress)

    def progress(self, done: int, total: int) -> None:
        """Note how far staging is."""
        self.looked_at, self.count = done, total


class DiscoveryRequest(BatchRequest):
    """A discovery report that came in parts. Its answer tells what it changed."""

    def __init__(
        self, client: bytes, message: ApplyDiscovery, modules: Sequence[bytes], reply: Reply, held_bytes: int = 0
    ) -> None:
        super().__init__(client, message, modules, reply, held_bytes)
        self._report = message.report
        self._outcome = reconcile.Outcome()

    def stage(self, draft: Draft) -> None:
        """Declare the modules that were found, and withdraw those that are gone."""
        self._outcome = reconcile.Outcome()  # a group that failed is staged again
        reconcile.apply_discovery(draft, decode_report(self._report, self._modules), self._outcome)

    def success(self, revision: int) -> Applied:
        """The names that were declared, withdrawn and refused."""
        done = self._outcome
        return Applied(self.id, revision, tuple(done.declared), tuple(done.withdrawn), tuple(done.refused))


class UsageReport:
    """A batch of usage that is not durable yet."""

    looked_at = 0
    count = 1
    is_answered = False

    def __init__(self, request: int) -> None:
        self.id = request


class EncodedModules(Sequence[ModuleInfo]):
    """The modules of a batch, decoded one by one, so that at most one is in memory both encoded and decoded."""

    def __init__(self, encoded: Sequence[bytes]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> ModuleInfo: ...
    @overload
    def __getitem__(self, index: slice) -> EncodedModules: ...
    def __getitem__(self, index: int | slice) -> ModuleInfo | EncodedModules:
        if isinstance(index, slice):
            return EncodedModules(self._encoded[index])
        return decode_module(self._encoded[index])

    def __iter__(self) -> Iterator[ModuleInfo]:
        return map(decode_module, self._encoded)


def decode_module(encoded: bytes) -> ModuleInfo:
    """A module as a client sent it, not validated. Raises ProtocolError, InvalidModuleError for too many values."""
    found = excess(encoded)
    if found == MANY:
        raise InvalidModuleError("a module", (f"record: more than {MAX_RECORD_VALUES} values",))
    if found:
        raise ProtocolError(f"a module {found} to be read.")
    try:
        return _decode_module(encoded)
    except UNREADABLE as error:
        raise ProtocolError(f"a module is not understood: {error}.") from error


def decode_labels(encoded: bytes) -> tuple[LabelUpdate, ...]:
    """Changes of labels as a client sent them, not validated. Raises ProtocolError."""
    if found := excess(encoded):
        raise ProtocolError(f"a request for labels {found} to be read.")
    try:
        return _decode_labels(encoded)
    except UNREADABLE as error:
        raise ProtocolError(f"changes of labels are not understood: {error}.") from error


def decode_rollout(encoded: bytes) -> rollouts.RolloutRequest:
    """A request about a rollout as a client sent it, not checked. Raises ProtocolError."""
    if found := excess(encoded):
        raise ProtocolError(f"a request for a rollout {found} to be read.")
    try:
        return rollouts.decode_request(encoded)
    except UNREADABLE as error:
        raise ProtocolError(f"a request for a rollout is not understood: {error}.") from error


def decode_report(encoded: bytes, modules: Sequence[bytes]) -> DiscoveryReport:
    """A discovery report together with its modules, which came separately. Raises ProtocolError."""
    from dspy_registry.writer.discovery.report import DiscoveryReport

    if found := excess(encoded):
        raise ProtocolError(f"a discovery report {found} to be read.")
    try:
        report = msgspec.msgpack.decode(encoded, type=DiscoveryReport)
    except UNREADABLE as error:
        raise ProtocolError(f"a discovery report is not understood: {error}.") from error
    return msgspec.structs.replace(report, modules=tuple(EncodedModules(modules)))


def _is_next_version(message: Register, draft: Draft) -> bool:
    """Whether the version after the expected one is in force and has this record. No version number is used twice."""
    info, encoded = validate_encoded(decode_module(message.module))
    current = draft.module(info.name)
    expected = message.expected_version
    return (
        current is not None and expected is not None and (current.version, current.encoded) == (expected + 1, encoded)
    )


_STAGING: Final[Mapping[type[Any], Callable[[Draft, Any], object]]] = {
    Register: lambda draft, message: draft.register(decode_module(message.module), message.expected_version),
    Unregister: lambda draft, message: draft.unregister(message.name),
    SetAlias: lambda draft, message: draft.set_alias(message.alias, message.name),
    RemoveAlias: lambda draft, message: draft.remove_alias(message.alias),
    Release: lambda draft, message: overrides.release(draft, message.name),
    Rename: lambda draft, message: overrides.rename(draft, message.name, message.new_name),
    ResetUsage: lambda draft, message: reset_usage(draft, message.name, message.version),
    SetLabels: lambda draft, message: labels.set_labels(draft, decode_labels(message.updates)),
    SetPolicy: lambda draft, message: policies.set_policy(draft, message.pattern, message.policy),
    SteerRollout: lambda draft, message: rollouts.steer(draft, decode_rollout(message.request)),
    SetImplications: lambda draft, message: draft.set_implications(CLIENT, message.implications),
}


def stage_message(draft: Draft, message: ChangeRequest) -> None:
    """Stage a request that came in one message. Raises ProtocolError for a malformed one."""
    stage = _STAGING.get(type(message))
    if stage is None:
        raise ProtocolError(f"{type(message).__name__} cannot be sent as a single message.")
    stage(draft, message)


def batch_request(
    client: bytes, message: RegisterMany | ApplyDiscovery, modules: Sequence[bytes], reply: Reply, held_bytes: int
) -> BatchRequest:
    """A request whose modules came in parts. `held_bytes` is the memory that they take."""
    if isinstance(message, ApplyDiscovery):
        return DiscoveryRequest(client, message, modules, reply, held_bytes)
    return BatchRequest(client, message, modules, reply, held_bytes)
