"""`discover`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspy_registry.cli import console, tables
from dspy_registry.cli.numbers import Number
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.registry_store.records import to_plain
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.writer.discovery.report import DiscoveryReport

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def discovery_options(command: Decorated) -> Decorated:
    """`--package` (repeated), `--python` (None: this interpreter), `--timeout` (seconds; None: the default)."""
    for option in (
        click.option(
            "--timeout", type=Number(), metavar="SECONDS", help="Time limit for the whole discovery. Default: 30."
        ),
        click.option("--python", metavar="PATH", help="The workers' Python interpreter. Default: this one."),
        click.option("--package", "packages", multiple=True, metavar="NAME", help="Look through this package too."),
    ):
        command = option(command)
    return command


@click.command("discover", short_help="Find the modules of a Python environment.")
@discovery_options
@click.option("--register", is_flag=True, help="Register what was found.")
@embedded_option
@console.path_option
@console.json_option
def discover(
    packages: tuple[str, ...],
    python: str | None,
    timeout: float | None,
    register: bool,
    embedded: bool,
    path: Path | None,
    as_json: bool,
) -> int:
    """Find the modules, optimizers and retrievers of DSPy and of further packages in a Python environment.

    Importing the packages runs their code. Without --register no registry is needed, and the command exits with 1
    when nothing was found.

    \b
    dspy-registry discover --package acme.pipelines --python /srv/worker/bin/python --register
    """
    from dspy_registry.writer.discovery.report import DEFAULT_TIMEOUT
    from dspy_registry.writer.discovery.report import discover as look

    with console.spinner("looking through the packages", quiet=as_json):
        report = look(packages, python=python, timeout=DEFAULT_TIMEOUT if timeout is None else timeout)
    facts = _facts(report)
    if register:
        with open_writer(path, embedded) as writer:
            outcome = writer.apply_discovery(report)
        facts["registered"] = {
            "revision": outcome.revision,
            "declared": outcome.declared,
            "withdrawn": outcome.withdrawn,
            "refused": outcome.refused,
        }
    if as_json:
        console.print_json(facts)
    else:
        _show(report, facts)
    return 0 if report.modules or register else 1


def _facts(report: DiscoveryReport) -> dict[str, Any]:
    return {
        "modules": [to_plain(info) for info in report.modules],
        "failures": [{"package": failure.package, "reason": failure.reason} for failure in report.failures],
        "incomplete": list(report.incomplete),
        "python": report.python,
        "dspy_version": report.dspy_version,
    }


def _show(report: DiscoveryReport, facts: dict[str, Any]) -> None:
    if report.modules:
        rows = map(tables.module_row, report.modules)
        tables.print_table(tables.MODULE_COLUMNS, rows, spare=tables.SPARE_MODULE_COLUMNS)
    console.say(f"{counted(len(report.modules), 'module')} found; {_dspy_of(report)}")
    for failure in report.failures:
        console.print_warning(f"{failure.package}: {failure.reason}")
    if report.incomplete:
        from dspy_registry.writer.discovery.package_watch import shown
        from dspy_registry.writer.discovery.report import COMPLETING

        console.print_warning(f"nothing is known of what these can do: {shown(report.incomplete)}")
        console.say(COMPLETING)
    if done := facts.get("registered"):
        counts = ", ".join(f"{len(done[what])} {what}" for what in ("declared", "withdrawn", "refused"))
        console.say(f"{counts}, as of revision {done['revision']}")
        for problem in done["refused"]:
            console.print_warning(problem)


def _dspy_of(report: DiscoveryReport) -> str:
    if report.dspy_version:
        return f"{report.python} has DSPy {report.dspy_version}"
    if "dspy" in report.looked_through:
        return f"{report.python} has no DSPy"
    return f"it is not known whether {report.python} has DSPy"
