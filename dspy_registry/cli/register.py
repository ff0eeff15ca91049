"""`register`, `unregister`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import click

from dspy_registry.cli import completion, console
from dspy_registry.cli.beneath import declaring_manifests, warn_of_overrides
from dspy_registry.cli.label import labels_of
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.registry_store.errors import InvalidModuleError, UnknownModuleError
from dspy_registry.registry_store.vocabulary import LEVELS
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.registry_store.records import ModuleInfo

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_NEEDS: Final = ("memory", "compute", "gpu")


def _fields(command: Decorated) -> Decorated:
    """The fields of one module; None where not given."""
    level = click.Choice(LEVELS)
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Register one module with this full name."),
            click.option("--category", metavar="WORD", shell_complete=completion.categories),
            click.option(
                "-c",
                "--capability",
                "capabilities",
                multiple=True,
                metavar="WORD",
                help="Repeat it for each.",
                shell_complete=completion.capabilities,
            ),
            click.option("--memory", type=level),
            click.option("--compute", type=level),
            click.option("--gpu/--no-gpu", default=None, help="Whether it needs a GPU."),
            click.option("--pool", "pool_type", metavar="WORD", shell_complete=completion.pools),
            click.option("--duration", "estimated_duration", type=Whole(), metavar="MS", help="Typical milliseconds."),
            click.option("--native/--no-native", "native_available", default=None, help="Has a native implementation."),
            click.option("--example", "examples", multiple=True, metavar="TEXT", help="Repeat it for each."),
            click.option("--metadata", metavar="JSON", help="A JSON object of further data."),
        )
    ):
        command = option(command)
    return command


@click.command("register", short_help="Register or update modules.")
@click.argument("file", type=click.File("rb"), required=False)
@_fields
@click.option(
    "--expected-version",
    type=Whole(min=0),
    metavar="N",
    help="Only if the module is at this version now; 0: not registered.",
)
@embedded_option
@console.path_option
@console.json_option
def register(
    file: IO[bytes] | None,
    expected_version: int | None,
    embedded: bool,
    path: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Register or update modules: all modules in FILE ("-": stdin) or none, or one module given by options.

    The record of a module is replaced as a whole: what is not given takes its default.

    FILE is JSON (one module, a list, or one per line), YAML or TOML; the suffix gives the format. The output of
    `get --json`, `list --json` and `discover --json` can be registered unchanged.

    \b
    dspy-registry register modules.yaml
    dspy-registry register --name acme.Summarise --capability summarisation --duration 1200
    dspy-registry get Predict --json | jq '.estimated_duration = 900' | dspy-registry register -
    """
    modules = _modules(file, {field: value for field, value in fields.items() if value not in (None, ())})
    if file is None:
        _refuse_wrong_options(modules[0])
    if expected_version is not None and len(modules) != 1:
        raise click.UsageError("--expected-version is for one module.", click.get_current_context())
    with open_writer(path, embedded) as writer:
        if len(modules) == 1:
            revision = writer.register_module(modules[0], expected_version=expected_version)
        else:
            with console.progress("registering", quiet=as_json) as report:
                revision = writer.register_modules(modules, progress=report)
    what = modules[0].name if len(modules) == 1 else counted(len(modules), "module")
    names = [module.name for module in modules]
    console.print_done(f"registered {what}", {"revision": revision, "names": names}, as_json=as_json)
    if not as_json:
        warn_of_overrides(path, names)


def _modules(file: IO[bytes] | None, fields: dict[str, Any]) -> list[ModuleInfo]:
    from dspy_registry.cli.module_files import module_from, read_modules

    context = click.get_current_context()
    if (file is None) == (not fields):
        raise click.UsageError("Give either a FILE or the fields of one module.", context)
    if file is not None:
        return read_modules(file.name, file.read())
    if "name" not in fields:
        raise click.UsageError("--name is missing.", context)
    fields["requirements"] = {need: fields.pop(need) for need in _NEEDS if need in fields}
    if "metadata" in fields:
        fields["metadata"] = _json_object(fields["metadata"])
    return [module_from(fields)]


def _refuse_wrong_options(module: ModuleInfo) -> None:
    """What options say is wrong usage. What a file says is not."""
    from dspy_registry.registry_store.validation import validate_encoded

    try:
        validate_encoded(module)
    except InvalidModuleError as error:
        raise click.UsageError(error.message, click.get_current_context()) from error


def _json_object(text: str) -> dict[str, Any]:
    from dspy_registry.writer.manifests.text import TextProblem, read_text

    try:
        data = read_text(text, ".json").data
        problem = "" if isinstance(data, dict) else f"it is a {type(data).__name__}"
    except TextProblem as error:
        data, problem = {}, error.message
    if problem:
        raise click.BadParameter(f"{text!r} is not a JSON object: {problem}", param_hint="--metadata")
    return dict(data)


@click.command("unregister", short_help="Remove modules.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion.modules)
@embedded_option
@console.path_option
@console.json_option
def unregister(names: tuple[str, ...], embedded: bool, path: Path | None, as_json: bool) -> int:
    """Remove modules by their full names, one after the other. Exits with 1 when one was not registered."""
    removed: list[str] = []
    unknown: list[str] = []
    revision = None
    with open_writer(path, embedded) as writer:
        returning = declaring_manifests(path, dict.fromkeys(names))
        labelled = dict(labels_of(path, dict.fromkeys(names)))
        for name in dict.fromkeys(names):
            try:
                revision = writer.unregister_module(name)
                removed.append(name)
            except UnknownModuleError as error:
                console.print_error(type(error).__name__, error.message, error.remedy, as_json=as_json)
                unknown.append(name)
    if as_json:
        back = {name: source for name, source in returning.items() if name in removed}
        gone = {name: held for name, held in labelled.items() if name in removed}
        facts = {"names": removed, "unknown": unknown, "declared_by": back, "labels": gone}
        console.print_json({"revision": revision, **facts})
    elif removed:
        console.print_done(f"unregistered {', '.join(removed)}", {"revision": revision}, as_json=False)
        for name in filter(labelled.__contains__, removed):
            console.say(f"the labels of {name} are gone with it: {', '.join(labelled[name])}")
        for name in filter(returning.__contains__, removed):
            brings_back = "the next change of that folder, or the daemon's next start, brings it back"
            console.print_warning(f"{returning[name]} declares {name}: {brings_back}. Remove it there.")
    return 1 if unknown else 0
