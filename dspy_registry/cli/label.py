"""`label`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.labels import Label, Weights, shown_versions
from dspy_registry.registry_store.number_text import number, whole_number

_EXPECTED = "Only if it names this now: VERSION or VERSION=WEIGHT,…; 0: it is not set."


@click.group("label", invoke_without_command=True, short_help="Labels of versions: list, set, remove.")
@click.pass_context
def label(context: click.Context) -> None:
    """Labels: names for versions of a module, as in acme.Qa@champion."""
    if context.invoked_subcommand is None:
        raise click.UsageError("Say what to do: list, set or remove.", context)


@label.command("list", short_help="Print labels.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completion.modules)
@console.path_option
@console.json_option
def list_labels(names: tuple[str, ...], path: Path | None, as_json: bool) -> None:
    """Print the labels of all modules, or of those named: what each names, who set it, and when.

    Weights are in percent.
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        asked: Iterable[str] = (snapshot.resolve(name).name for name in names) if names else snapshot.labelled_modules()
        rows = [(name, word, kept) for name in asked for word, kept in snapshot.labels(name).items()]
    if as_json:
        console.print_json({"labels": [_plain(*row) for row in rows]})
    elif rows:
        tables.print_table(("module", "label", "versions", "source", "by", "updated"), map(_cells, rows))
    else:
        console.say("no labels are set")


def _cells(row: tuple[str, str, Label]) -> tuple[object, ...]:
    name, word, kept = row
    when = console.local_time(kept.updated_at)
    return name, word, shown_versions(kept.versions), kept.source, shown_requester(kept.by), when


def _plain(name: str, word: str, kept: Label) -> dict[str, Any]:
    facts = {"revision": kept.revision, "updated_at": kept.updated_at, "source": kept.source, "by": kept.by}
    return {"name": name, "label": word, "versions": kept.percents, **facts}


@label.command("set", short_help="Let a label name a version, or several with weights.")
@click.argument("name", shell_complete=completion.modules)
@click.argument("word", metavar="LABEL", shell_complete=completion.labels)
@click.argument("versions", metavar="VERSION|VERSION=WEIGHT...", nargs=-1, required=True)
@click.option("--expected", metavar="VERSIONS", help=_EXPECTED)
@embedded_option
@console.path_option
@console.json_option
def set_label(
    name: str,
    word: str,
    versions: tuple[str, ...],
    expected: str | None,
    embedded: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """Let LABEL of the module NAME, by its full name, name a version, or several with weights.

    \b
    dspy-registry label set acme.Qa champion 3
    dspy-registry label set acme.Qa live 3=90 4=10
    """
    wanted = _versions(versions)
    with open_writer(path, embedded) as writer:
        revision = writer.set_label(name, word, wanted, expected=_expected(expected))
    console.print_done(f"{name}@{word} names {' '.join(versions)}", {"revision": revision}, as_json=as_json)


@label.command("remove", short_help="Remove a label.")
@click.argument("name", shell_complete=completion.modules)
@click.argument("word", metavar="LABEL", shell_complete=completion.labels)
@click.option("--expected", metavar="VERSIONS", help=_EXPECTED)
@embedded_option
@console.path_option
@console.json_option
def remove_label(name: str, word: str, expected: str | None, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Remove LABEL of the module NAME. Versions that only it kept are dropped."""
    with open_writer(path, embedded) as writer:
        revision = writer.remove_label(name, word, expected=_expected(expected))
    console.print_done(f"{name} has no label {word} any more", {"revision": revision}, as_json=as_json)


def _expected(text: str | None) -> int | Weights | None:
    return None if text is None else _versions(text.replace(",", " ").split())


def _versions(words: Iterable[str]) -> int | Weights:
    """`3`, or weights by version. Raises UsageError for what is neither."""
    parts = [word.partition("=") for word in words]
    if len(parts) == 1 and not parts[0][1]:
        return _number(parts[0][0])
    weights: dict[int, float] = {}
    for version, equals, weight in parts:
        if not equals:
            raise click.UsageError(f"{version!r} has no weight: with several versions, each is VERSION=WEIGHT.")
        if _number(version) in weights:
            raise click.UsageError(f"version {version} is given twice.")
        weights[_number(version)] = _weight(weight)
    return weights


def _number(text: str) -> int:
    found = whole_number(text)
    if found is None:
        raise click.UsageError(f"{text!r} is not a version: give a number, as `history` shows it.")
    return found


def _weight(text: str) -> float:
    found = number(text)
    if found is None:
        raise click.UsageError(f"{text!r} is not a weight: give a number above 0.")
    return found


def labels_of(path: Path | None, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The labels of each of these full names that has some, now."""
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        for name in names:
            if name in snapshot and (held := list(snapshot.labels(name))):
                yield name, held
