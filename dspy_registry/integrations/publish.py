"""Publishing a compiled DSPy program: its document, and the call that stores it as a version of a module."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from dspy_registry.readers.program_dump import dumped
from dspy_registry.readers.program_shapes import class_path_of, shapes_of
from dspy_registry.readers.program_state import state_problems
from dspy_registry.readers.program_unsaved import unsaved
from dspy_registry.readers.rebuild import build, dspy_version, loaded
from dspy_registry.registry_store.errors import InvalidProgramError, ProgramRefusedError
from dspy_registry.registry_store.program_document import ProgramDocument, digest_of, encode_document, encode_json
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.writer.programs import Publication, Published

if TYPE_CHECKING:
    import os
    from contextlib import AbstractContextManager

_NAME_AN_ORIGIN: Final = (
    'Where its class alone does not make it, name what does: origin="package.module:name", a function without '
    "arguments or a program."
)


class Publisher(Protocol):
    """What publishes: RegistryWriter and WriterClient do."""

    def publish_program(
        self, publication: Publication, document: bytes, *, expected_version: int | None = None
    ) -> Published: ...


def publish(
    program: Any,
    name: str,
    *,
    client: Publisher | None = None,
    path: str | os.PathLike[str] | None = None,
    label: str = "",
    in_force: bool = False,
    info: ModuleInfo | None = None,
    origin: str | None = None,
    expected_version: int | None = None,
) -> Published:
    """Publish a compiled program as a version of the module of this full name, in one commit.

    `client` sends it: a WriterClient or a RegistryWriter. None: a WriterClient for the registry in `path`, whose None
    means $DSPY_REGISTRY, else the user's data directory. `label` is set to the version; empty: no label. `in_force`
    says whether the version becomes what the name alone means; the first version of a module does in any case. `info`
    is the record to go with it; None: the one in force. `origin` is where a worker gets the program from before the
    state is loaded, as `package.module:name`: a class, a function without arguments, or a program. None: its class.
    `expected_version` is as for `register_module`.

    Before anything is sent, the program is built and loaded here as a worker will do it. What would be lost on the way
    is refused: InvalidProgramError names every reason. Raises what `publish_program` raises, too.
    """
    document = encode_document(document_of(program, origin))
    publication = Publication(name, digest_of(document), info, label, in_force)
    with _publisher(client, path) as publisher:
        return publisher.publish_program(publication, document, expected_version=expected_version)


def document_of(program: Any, origin: str | None = None) -> ProgramDocument:
    """The document of a program, tried out: it was loaded from the document once. Raises InvalidProgramError."""
    class_path = class_path_of(program)
    _refuse_a_class(program, class_path)
    origin = origin or class_path
    problems = list(_origin_problems(origin))
    state = dumped(program)
    problems += state_problems(state)
    if problems:
        raise InvalidProgramError(class_path, problems)
    fresh = _built(origin, class_path)
    if problems := list(unsaved(program, fresh)):
        raise InvalidProgramError(class_path, problems)
    document = ProgramDocument(
        class_path=class_path,
        origin=origin,
        dspy_version=dspy_version(),
        predictors=shapes_of(program),
        state=msgspec.Raw(encode_json(state)),
    )
    try:
        loaded(document.whole(), fresh, class_path)
    except ProgramRefusedError as error:
        raise InvalidProgramError(class_path, error.problems) from error
    return document


def _built(origin: str, class_path: str) -> Any:
    try:
        return build(origin, class_path)
    except ProgramRefusedError as error:
        refused = InvalidProgramError(class_path, error.problems)
        if origin == class_path:
            refused.remedy = f"{refused.remedy} {_NAME_AN_ORIGIN}"
        raise refused from error


def _refuse_a_class(program: Any, class_path: str) -> None:
    if isinstance(program, type):
        name = program.__name__
        refused = InvalidProgramError(class_path, (f"{name} is a class, and has learned nothing",))
        refused.remedy = f"Nothing was changed. Give an instance, as in publish({name}(), …)."
        raise refused


def _origin_problems(origin: str) -> list[str]:
    module, _, path = origin.partition(":")
    if "<locals>" in path:
        return [f"{origin} is made inside a function, where no worker finds it: name another origin"]
    if module == "__main__":
        return [f"{origin} is in the script that runs, which no worker can import: move it into a module"]
    if not module or not path:
        return [f"{origin!r} is no origin: write package.module:name"]
    return []


def _publisher(client: Publisher | None, path: str | os.PathLike[str] | None) -> AbstractContextManager[Publisher]:
    if client is not None:
        return nullcontext(client)
    from dspy_registry.writer.client.client import WriterClient

    return WriterClient(path)
