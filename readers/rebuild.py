"""From a published document to a program in this process, or a refusal that names every reason. Nothing is pickled.

The code is imported from allowed packages alone. What it makes must have the class and the predictors that were
published. The state is loaded only then, and compared afterwards with what was published.
"""

from __future__ import annotations

import copy
import importlib
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from dspy_registry.readers.program_dump import dumped
from dspy_registry.readers.program_shapes import class_path_of, shapes_of
from dspy_registry.readers.program_state import is_same, lost_in, unloaded
from dspy_registry.registry_store.errors import InvalidArgumentError, ProgramRefusedError
from dspy_registry.registry_store.program_document import ProgramForm, WholeProgram, decode_whole
from dspy_registry.registry_store.program_drift import drift

_BREATH: Final = 0.0002
_FAILURES: Final = (Exception, SystemExit)
"""What code raises that cannot make its program: some ends its process if a setting is missing."""


def rebuild(encoded: bytes, name: str, allow: Sequence[str]) -> Any:
    """The program of a document. `name` is what to call it in an error.

    Raises ProgramRefusedError naming every reason, CorruptRecordError.
    """
    published = decode_whole(encoded)
    _refuse(name, code_problems(published, allow))
    _breathe()
    return loaded(published, build(published.origin, name), name)


def loaded(published: WholeProgram, program: Any, name: str) -> Any:
    """A program that `build` has just made, with the state that was published. Raises as `rebuild`."""
    _refuse(name, _form_problems(published, program))
    _breathe()
    state = published.state
    _refuse(name, unloaded(state))
    try:
        _load(program, state)
        now = dumped(program, state)
        _breathe()
        lost = [] if is_same(state, now) else list(lost_in(state, now))
    except _FAILURES as error:
        raise ProgramRefusedError(name, (f"DSPy does not load its state: {type(error).__name__}: {error}",)) from error
    _refuse(name, lost)
    return program


def _load(program: Any, state: dict[str, Any]) -> None:
    """As DSPy loads a state, but without its trial on a copy: nobody has this program yet if it fails half loaded.

    What is loaded is compared with `state` afterwards. So code that is not DSPy's gets another one: it may change it.
    """
    import dspy

    if type(program).load_state is not dspy.Module.load_state:
        program.load_state(copy.deepcopy(state))
        return
    parameters = program.named_parameters()
    if not all(type(parameter).__module__.startswith("dspy.") for _, parameter in parameters):
        state = copy.deepcopy(state)
    for name, parameter in parameters:
        parameter.load_state(state[name])
        _breathe()


def _breathe() -> None:
    """Let the threads that answer requests run: by itself the interpreter changes threads every 5 ms only."""
    if threading.active_count() > 1:  # a publisher often has one thread only
        time.sleep(_BREATH)


def build(origin: str, name: str) -> Any:
    """A program as its code makes it: `origin` names a class, a function without arguments, or a program to copy.

    Raises ProgramRefusedError.
    """
    import dspy

    module, _, path = origin.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        program = found.deepcopy() if isinstance(found, dspy.Module) else found()
    except _FAILURES as error:
        reason = f"{origin} cannot be built here: {type(error).__name__}: {error}"
        raise ProgramRefusedError(name, (reason,)) from error
    if not isinstance(program, dspy.Module):
        raise ProgramRefusedError(name, (f"{origin} makes a {type(program).__name__}, which is no dspy.Module",))
    return program


def code_problems(document: ProgramForm, allow: Sequence[str]) -> Iterator[str]:
    """Why its code may not be imported, or its state not be loaded by the DSPy that is here."""
    module = document.origin.partition(":")[0]
    if not any(module == package or module.startswith(f"{package}.") for package in allow):
        allowed = ", ".join(allow) or "none"
        yield f"its code is in {module}, and the packages allowed here are: {allowed}"
    here = dspy_version()
    if _major(here) != _major(document.dspy_version):
        yield f"DSPy {document.dspy_version} wrote its state, and DSPy {here} is here"


def checked_packages(allow: Sequence[str]) -> tuple[str, ...]:
    """Names of packages. Raises InvalidArgumentError for one text instead of several, and for what is no name."""
    wrong = [package for package in allow if not all(part.isidentifier() for part in package.split("."))]
    if isinstance(allow, str) or wrong:
        raise InvalidArgumentError(f"allow is {allow!r}; it takes names of packages, as in ('acme',).")
    return tuple(allow)


@cache
def dspy_version() -> str:
    """The release of DSPy that is here. Its files are looked at once: they may be replaced while this process runs."""
    from importlib.metadata import version

    return version("dspy")


def _form_problems(document: ProgramForm, program: Any) -> Iterator[str]:
    found = class_path_of(program)
    if found != document.class_path:
        yield f"{document.origin} makes a {found} here, and a {document.class_path} was published"
    yield from drift(document.predictors, shapes_of(program))


def _major(version: str) -> str:
    return version.partition(".")[0]


def _refuse(name: str, problems: Iterator[str] | Sequence[str]) -> None:
    found = tuple(problems)
    if found:
        raise ProgramRefusedError(name, found)
