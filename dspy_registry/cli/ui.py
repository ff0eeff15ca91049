"""`ui`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from dspy_registry.cli import console
from dspy_registry.registry_store.errors import NotPossibleError

TOKEN_VARIABLE: Final = "DSPY_REGISTRY_UI_TOKEN"
_PORT: Final = 8712
_LONGEST: Final = 4096


@click.command("ui", short_help="Show the registry in a browser.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=_PORT,
    show_default=True,
    envvar="DSPY_REGISTRY_UI_PORT",
    show_envvar=True,
    help="0: any free one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    envvar="DSPY_REGISTRY_UI_HOST",
    show_envvar=True,
    help="The address to listen at. One that other hosts can reach needs a token.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    envvar="DSPY_REGISTRY_UI_TOKEN_FILE",
    show_envvar=True,
    help=f"Want the token in this file of everybody. ${TOKEN_VARIABLE} holds it instead.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    envvar="DSPY_REGISTRY_UI_ALLOW_HOST",
    show_envvar=True,
    help="Answer to this host name too.",
)
@click.option("--open", "is_opened", is_flag=True, help="Open it in a browser.")
@console.path_option
def ui(
    port: int, host: str, token_file: Path | None, names: tuple[str, ...], is_opened: bool, path: Path | None
) -> None:
    """Show the registry in a browser: modules by use, versions, routing, live changes, readers. Until Ctrl-C.

    It only reads, and works while the daemon is down. Needs the extra [ui]: pip install 'dspy-module-registry[ui]'.
    """
    serve = _server()
    from dspy_registry.cli.waiting import open_registry

    with open_registry(path) as registry:
        folder = registry.path
    serve(
        folder,
        host=host,
        port=port,
        token=_token(token_file),
        names=names,
        shown_folder=None if path is None else str(path),
        ready=lambda url: _say_ready(url, is_opened),
    )


def _server() -> Callable[..., None]:
    try:
        from dspy_registry.explorer.app import serve
    except ModuleNotFoundError as error:
        raise NotPossibleError(
            f"the explorer needs the package {error.name}, which is not installed.",
            remedy="Install the extra: pip install 'dspy-module-registry[ui]'.",
        ) from error
    return serve


def _token(file: Path | None) -> str | None:
    import os

    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    return file.read_text(encoding="utf-8")[:_LONGEST].strip()


def _say_ready(url: str, is_opened: bool) -> None:
    console.say(f"the explorer is at {url}")
    if is_opened:
        import webbrowser

        webbrowser.open(url)
