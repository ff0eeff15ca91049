"""`serve`."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dspy_registry.cli import console, operations
from dspy_registry.cli.cluster import cluster_extensions, cluster_options
from dspy_registry.cli.extras import needing
from dspy_registry.cli.manifests import watch_options, watching
from dspy_registry.cli.waiting import VARIABLE, wait_seconds

if TYPE_CHECKING:
    from dspy_registry.writer.daemon.bounds import Bounds
    from dspy_registry.writer.daemon.lifecycle import Daemon

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")


@click.command("serve", short_help="Run the writer daemon of a registry.")
@watch_options
@cluster_options
@operations.options
@click.option(
    "--group",
    metavar="NAME",
    envvar="DSPY_REGISTRY_GROUP",
    show_envvar=True,
    help="Also let members of this Unix group change the registry.",
)
@click.option(
    "--report-group",
    metavar="NAME",
    envvar="DSPY_REGISTRY_REPORT_GROUP",
    show_envvar=True,
    help="Let members of this Unix group report calls, and no more.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    envvar="DSPY_REGISTRY_METRICS",
    show_envvar=True,
    help="Answer Prometheus there, as in 127.0.0.1:9464. Needs the extra [metrics].",
)
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    show_default=True,
    envvar="DSPY_REGISTRY_LOG_LEVEL",
    show_envvar=True,
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="text",
    show_default=True,
    envvar="DSPY_REGISTRY_LOG_FORMAT",
    show_envvar=True,
)
@console.path_option
def serve(
    group: str | None,
    report_group: str | None,
    metrics: str | None,
    log_level: str,
    log_format: str,
    path: Path | None,
    **chosen: Any,
) -> None:
    """Run the writer daemon in the foreground, until SIGTERM or Ctrl-C.

    Creates the registry if there is none. The log goes to stderr; its line "process PID serves FOLDER" means that
    clients can connect. Each change has a line: what it changed, and who asked for it. Accepted requests are finished
    before the daemon ends.
    """
    from dspy_registry.writer.daemon.lifecycle import serve as run

    at_work = operations.extension(chosen)
    clustered = cluster_extensions(chosen)
    extensions = [watching(**chosen), at_work, *([] if metrics is None else [measuring(metrics)]), *clustered]
    _log_to_stderr(log_level, log_format)
    with suppress(OSError):  # a standard error that is no file
        faulthandler.enable()  # a data file that is cut short while it is mapped is a SIGBUS, which says nothing
    run(
        path,
        ready=_say_ready,
        group=group,
        report_group=report_group,
        bounds=_bounds(),
        extensions=extensions,
    )
    logging.getLogger("dspy_registry").info("ended")


def measuring(address: str) -> Callable[[Daemon], None]:
    """The daemon's extension that answers Prometheus. Raises NotPossibleError without the extra [metrics]."""
    with needing("metrics", "--metrics"):
        from dspy_registry.writer.metrics.attach import attach_metrics, parse_address
    parsed = parse_address(address)

    def attach(daemon: Daemon) -> None:
        bound = attach_metrics(daemon, parsed)
        logging.getLogger("dspy_registry").info("metrics are at http://%s/metrics", bound)

    return attach


def _bounds() -> Bounds:
    """Those of the daemon; how long it waits for a reader slot may be set as for other commands."""
    from dspy_registry.writer.daemon.bounds import Bounds

    return Bounds(slot_patience=wait_seconds()) if os.environ.get(VARIABLE) else Bounds()


def _log_to_stderr(level: str, form: str) -> None:
    from dspy_registry.writer.daemon.change_lines import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    log = logging.getLogger("dspy_registry")
    log.addHandler(handler)
    log.setLevel(level.upper())
    _note_only_what_is_shown()


def _note_only_what_is_shown() -> None:
    """A line is written for every change, and neither form shows these. Finding them out takes a third of the time."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # from 3.12 on
    logging._srcfile = None  # as the documentation of logging advises


def _say_ready(daemon: Daemon) -> None:
    log = logging.getLogger("dspy_registry")
    log.info("process %d serves %s at revision %d", os.getpid(), daemon.folder, daemon.revision)
