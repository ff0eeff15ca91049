"""`dspy-registry`: the program, and the table of its commands. The file of a command is loaded when it is used."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from dspy_registry.cli import console
from dspy_registry.registry_store.errors import InvalidArgumentError, NotPossibleError, RegistryError
from dspy_registry.registry_store.remedies import TOO_MANY_FILES

PROGRAM: Final = "dspy-registry"
DISTRIBUTION: Final = "dspy-module-registry"
SHELLS: Final = ("bash", "zsh", "fish")
COMPLETE_VARIABLE: Final = "_DSPY_REGISTRY_COMPLETE"

DONE, NO, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES: Final = """\b
Examples:
  dspy-registry demo                        see it at work, in a temporary folder
  dspy-registry serve                       run the writer of this host
  dspy-registry list                        every module, as a table
  dspy-registry get ChainOfThought          one module; short names work too
  dspy-registry find --capability reasoning --max-memory medium
  dspy-registry route dspy.ColBERTv2 --input-size 5000
  dspy-registry rollback ChainOfThought     undo the last change of a module
  dspy-registry discover --register         register what this Python environment has
  dspy-registry get Predict --json | jq .estimated_duration

\b
Exit status: 0 done, 1 the answer is no or not found, 2 wrong usage.
The registry is --path, else $DSPY_REGISTRY, else the user's data directory."""


# Each command: the module of this package that defines it, and its name there.
COMMANDS: Final = {
    "alias": ("alias", "alias"),
    "backup": ("backup", "backup"),
    "check": ("check", "check"),
    "cluster": ("cluster", "cluster"),
    "demo": ("demo", "demo"),
    "diff": ("history", "diff"),
    "discover": ("discover", "discover"),
    "find": ("lookup", "find"),
    "get": ("lookup", "get"),
    "health": ("health", "health"),
    "history": ("history", "history"),
    "label": ("label", "label"),
    "limits": ("health", "limits"),
    "list": ("lookup", "list_modules"),
    "manifests": ("manifests", "manifests"),
    "policy": ("policy", "policy"),
    "program": ("programs", "program"),
    "register": ("register", "register"),
    "release": ("rename", "release"),
    "rename": ("rename", "rename"),
    "repair": ("repair", "repair"),
    "restore": ("restore", "restore"),
    "rollback": ("rollback", "rollback"),
    "rollout": ("rollout", "rollout"),
    "route": ("route", "route"),
    "schema": ("manifests", "schema"),
    "serve": ("serve", "serve"),
    "stats": ("stats", "stats"),
    "status": ("status", "status"),
    "ui": ("ui", "ui"),
    "unregister": ("register", "unregister"),
    "upgrade": ("upgrade", "upgrade"),
    "watch": ("watch", "watch"),
}


class CommandGroup(click.Group):
    """Loads subcommands by the table, and prints errors as this command line does.

    A subcommand's return value is the exit status; None is 0.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, without loading them."""
        return sorted({*self.commands, *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded now if needed; None when no command has this name."""
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            module, name = COMMANDS[cmd_name]
            self.add_command(getattr(importlib.import_module(f"dspy_registry.cli.{module}"), name))
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Adds the nearest names to the error for an unknown command."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            close = difflib.get_close_matches(name, self.list_commands(ctx))
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"No such command '{name}'.{hint}")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with the status; `standalone_mode=False` raises errors instead."""
        arguments = list(sys.argv[1:] if args is None else args)

        def run() -> Any:
            variable = complete_var or COMPLETE_VARIABLE
            return super(CommandGroup, self).main(arguments, prog_name or PROGRAM, variable, False, **extra)

        if not standalone_mode:
            return run()
        _fill_standard_streams()
        try:
            status = run()
        except (click.ClickException, RegistryError, OSError, UnicodeError) as error:
            status = _report(error, as_json="--json" in arguments)
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        sys.exit(status)


def _fill_standard_streams() -> None:
    """Open /dev/null for a closed stream. Else the next file that is opened, the registry's, would get its number."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, stream, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


_HELP: Final[Any] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click 8.2 and newer raise for a group without a command; before, click prints the help by itself."""


def _hint(message: str, context: click.Context) -> str:
    """What was meant, if that can be said: "" or a sentence."""
    takes_path = any(param.name == "path" for param in context.command.params)
    is_one_too_many = message.startswith("Got unexpected extra argument")
    return "The registry's folder is given with --path. " if takes_path and is_one_too_many else ""


def _report(error: Exception, *, as_json: bool) -> int:
    """Print an error; the exit status."""
    if isinstance(error, _HELP):
        error.show()
        return WRONG_USAGE
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        remedy = f"{_hint(error.format_message(), context)}Try '{context.command_path} --help'." if context else ""
        console.print_error(type(error).__name__, error.format_message(), remedy, as_json=as_json)
        return error.exit_code
    if isinstance(error, RegistryError):
        console.print_error(type(error).__name__, error.message, error.remedy, as_json=as_json)
        return WRONG_USAGE if _is_wrong_usage(error) else NO
    is_without_files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    remedy = TOO_MANY_FILES if is_without_files else ""
    console.print_error(type(error).__name__, str(error), remedy, as_json=as_json)
    return NO


def _is_wrong_usage(error: RegistryError) -> bool:
    """Whether the command line itself is wrong, whatever the registry holds."""
    return isinstance(error, InvalidArgumentError) and not isinstance(error, NotPossibleError)


@click.group(
    cls=CommandGroup,
    epilog=EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name=DISTRIBUTION, prog_name=PROGRAM)
@click.pass_context
def main(context: click.Context) -> None:
    """Find out which DSPy modules exist on this host, what they can do and how to route them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(WRONG_USAGE)


@main.command("completion", short_help="Print the script that completes this command in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes this command, module names included.

    \b
    bash   eval "$(dspy-registry completion bash)"          in ~/.bashrc
    zsh    eval "$(dspy-registry completion zsh)"           in ~/.zshrc
    fish   dspy-registry completion fish > ~/.config/fish/completions/dspy-registry.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click has the three shells built in"
    click.echo(found(main, {}, PROGRAM, COMPLETE_VARIABLE).source())
