"""`ui`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from dspy_registry.cli import console
from dspy_registry.cli.extras import needing
from dspy_registry.cli.numbers import Whole
from dspy_registry.registry_store.errors import InvalidArgumentError

TOKEN_VARIABLE: Final = "DSPY_REGISTRY_UI_TOKEN"
TOKEN_FILE_VARIABLE: Final = "DSPY_REGISTRY_UI_TOKEN_FILE"
_PUT_ONE: Final = """Put one into it: python -c "import secrets; print(secrets.token_urlsafe())" > FILE."""
_PORT: Final = 8712
_LONGEST: Final = 4096


@click.command("ui", short_help="Show the registry in a browser.")
@click.option(
    "--port",
    type=Whole(0, 65535),
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
    envvar=TOKEN_FILE_VARIABLE,
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
    with needing("ui", "the explorer"):
        from dspy_registry.explorer.app import serve
    return serve


def _token(file: Path | None) -> str | None:
    """The token that is wanted of everybody. None: none is given. Raises InvalidArgumentError for one that is empty."""
    import os

    for variable in (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE):
        if file is None and os.environ.get(variable, "-").strip() == "":
            raise InvalidArgumentError(
                f"${variable} is set, but empty, so the explorer would ask nobody for a token.",
                remedy=f"Give it a value, or unset it: unset {variable}.",
            )
    return os.environ.get(TOKEN_VARIABLE) if file is None else _token_in(file)


def _token_in(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            token = opened.read(_LONGEST + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it has characters that are not ASCII"
        raise InvalidArgumentError(f"the token file {file} cannot be used: {why}.", remedy=_PUT_ONE) from error
    if not token or len(token) > _LONGEST:
        why = "is empty" if not token else f"has more than {_LONGEST:,} characters"
        raise InvalidArgumentError(f"the token file {file} {why}.", remedy=_PUT_ONE)
    return token


def _say_ready(url: str, is_opened: bool) -> None:
    console.say(f"the explorer is at {url}")
    if is_opened:
        import webbrowser

        webbrowser.open(url)
