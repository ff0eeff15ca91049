"""`program publish`, `program show`, `program export`, `program diff`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.extras import needing
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry
from dspy_registry.readers.published import StoredProgram, read_program
from dspy_registry.registry_store.errors import InvalidProgramError, ProgramRefusedError
from dspy_registry.registry_store.program_text import PredictorText, compared, predictors_of

_key_option = click.option("--key", metavar="TEXT", help="Of a weighted label, the version for this key.")


@click.group("program", short_help="Publish and look at compiled DSPy programs.")
def program() -> None:
    """Publish compiled DSPy programs as versions of modules, and look at them.

    NAME is a module's name, `NAME@3` a version, `NAME@live` what a label names.
    """


@program.command("publish", short_help="Publish a compiled program as a version of a module.")
@click.argument("target", metavar="PACKAGE.MODULE:OBJECT")
@click.argument("name")
@click.option("--label", default="", metavar="WORD", help="Set this label to the version, in the same commit.")
@click.option("--in-force", is_flag=True, help="Let the version be what the name alone means.")
@click.option("--state", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Load this JSON first.")
@embedded_option
@console.path_option
@console.json_option
def publish(
    target: str,
    name: str,
    label: str,
    in_force: bool,
    state: Path | None,
    embedded: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """Publish the program PACKAGE.MODULE:OBJECT as a version of the module NAME.

    OBJECT is a program, a class, or a function without arguments that makes a program. With --state it first loads what
    DSPy's `program.save("state.json")` wrote. DSPy must be installed here, and the module importable.

    \b
    dspy-registry program publish acme.app:qa acme.Qa --label candidate
    dspy-registry program publish acme.app:Qa acme.Qa --state compiled.json --label live
    """
    from dspy_registry.integrations.publish import publish as send

    made = _program(target, state)
    with open_writer(path, embedded) as writer:
        done = send(made, name, client=writer, label=label, in_force=in_force, origin=target)
    named = f"{name}@{label}, version {done.version}" if label else f"version {done.version} of {name}"
    facts = {"revision": done.revision, "name": name, "version": done.version, "digest": done.digest, "label": label}
    console.print_done(f"published {named}", facts, as_json=as_json)


def _program(target: str, state: Path | None) -> Any:
    from dspy_registry.readers.rebuild import build

    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    module, _, place = target.partition(":")
    if not module or not place:
        raise click.BadParameter(f"{target!r} is not PACKAGE.MODULE:OBJECT", param_hint="PACKAGE.MODULE:OBJECT")
    with needing("dspy", "program publish"):
        importlib.import_module("dspy")
    importlib.invalidate_caches()
    try:
        made = build(target, target)
    except ProgramRefusedError as error:
        raise _unbuildable(target, module, error) from error
    if state is not None:
        made.load(state)
    return made


def _unbuildable(target: str, module: str, error: ProgramRefusedError) -> InvalidProgramError:
    """What stands in the way of publishing, with what helps where the module cannot be found."""
    refused, cause = InvalidProgramError(target, error.problems), error.__cause__
    if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
        refused.remedy = f"{refused.remedy} Set PYTHONPATH so that {module} can be imported."
    return refused


@program.command("show", short_help="Show the program of a version.")
@click.argument("name", shell_complete=completion.modules)
@_key_option
@console.path_option
@console.json_option
def show(name: str, key: str | None, path: Path | None, as_json: bool) -> None:
    """Show what the program of a version was made from, and the instructions and demonstrations of each predictor."""
    stored = _read(path, name, key)
    texts = predictors_of(stored.document)
    if as_json:
        console.print_json({**facts_of(stored), "predictors": texts})
        return
    tables.print_fields((field, value) for field, value in facts_of(stored).items())
    for text in texts:
        tables.print_text(f"\n{tables.printable(text.name)}  {tables.printable(text.kind)}")
        for line in _lines(text):
            tables.print_text(f"  {tables.printable(line)}")


@program.command("export", short_help="Write the state of a program, as DSPy saves it.")
@click.argument("name", shell_complete=completion.modules)
@click.argument("file", type=click.File("wb"), default="-")
@_key_option
@console.path_option
def export(name: str, file: Any, key: str | None, path: Path | None) -> None:
    """Write the state of a program to FILE ("-": stdout), in the form that DSPy's `program.load` takes."""
    from dspy_registry.registry_store.program_text import as_dspy_saves

    file.write(as_dspy_saves(_read(path, name, key).document))


@program.command("diff", short_help="Compare the programs of two versions.")
@click.argument("old", shell_complete=completion.modules)
@click.argument("new", shell_complete=completion.modules)
@console.path_option
@console.json_option
def diff(old: str, new: str, path: Path | None, as_json: bool) -> int:
    """Compare the instructions and demonstrations of each predictor of two programs, as in `acme.Qa@2 acme.Qa@3`.

    Exits with 1 when they differ.
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        before, after = read_program(snapshot, old), read_program(snapshot, new)
    changes = list(compared(before.document, after.document))
    if as_json:
        console.print_json({"old": facts_of(before), "new": facts_of(after), "changes": changes})
    else:
        for change in changes:
            tables.print_text(f"{tables.printable(change.predictor)}  {change.part}")
            for sign, lines in (("-", change.old), ("+", change.new)):
                for line in lines:
                    tables.print_text(f"  {sign} {tables.printable(line)}")
        if not changes:
            tables.print_text("the programs are equal")
    return 1 if changes else 0


def facts_of(stored: StoredProgram) -> dict[str, Any]:
    """What is known of a program beside its state."""
    document = stored.document
    return {
        "name": stored.name,
        "version": stored.version,
        "class": document.class_path,
        "origin": document.origin,
        "dspy": document.dspy_version,
        "bytes": stored.size,
        "sha256": stored.digest,
        "fingerprint": document.fingerprint,
    }


def _read(path: Path | None, name: str, key: str | None) -> StoredProgram:
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        return read_program(snapshot, name, key)


def _lines(text: PredictorText) -> Iterator[str]:
    for field in text.fields:
        yield f"{field.role:6}  {field.name}: {field.type}"
    yield from (f"| {line}" for line in text.instructions.splitlines())
    yield from (f"demo {number}: {demo}" for number, demo in enumerate(text.demos, 1))
