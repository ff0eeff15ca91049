"""Every option, argument and variable that is a number refuses what only Python takes for one."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from dspy_registry.cli.label import _versions
from dspy_registry.cli.numbers import Number, Whole
from dspy_registry.cli.operations import seconds_of
from dspy_registry.cli.program import main
from dspy_registry.cli.waiting import VARIABLE, wait_seconds
from dspy_registry.registry_store.errors import InvalidArgumentError

STRANGE = ("\u0661\u0662", "1_0", " 7 ", "nan", "inf", "1e999", "", "9" * 5000)
_LENGTHS = ("duration", "percent", "steps")


def parameters(group: click.Command, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    """Each parameter of each command."""
    context = click.Context(group, info_name=path)
    for each in group.params:
        yield f"{path} {each.name}", each
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            beneath = group.get_command(context, name)
            assert beneath is not None
            yield from parameters(beneath, f"{path} {name}")


def test_no_number_has_a_type_of_click_itself() -> None:
    found = dict(parameters(main))
    ours = {name for name, each in found.items() if isinstance(each.type, (Number, Whole))}
    clicks = {name for name, each in found.items() if each.type.name.split()[0] in ("integer", "float")}
    assert len(ours) > 20
    assert clicks - ours == set()


@pytest.mark.parametrize("text", STRANGE)
def test_every_number_of_every_command_refuses_it(text: str) -> None:
    for name, each in parameters(main):
        if isinstance(each.type, (Number, Whole)):
            with pytest.raises(click.BadParameter) as raised:
                each.type.convert(text, each, None)
            assert "in plain digits" in raised.value.message, name
        elif each.type.name in _LENGTHS:
            for unit in ("", "%", "s"):
                with pytest.raises(click.BadParameter):
                    each.type.convert(text + unit, each, None)


@pytest.mark.parametrize("text", STRANGE)
def test_so_do_weights_versions_and_intervals(text: str) -> None:
    for words in ([text], [f"{text}=50", "2=50"], [f"1={text}", "2=50"]):
        with pytest.raises(click.UsageError):
            _versions(words)
    with pytest.raises(click.BadParameter):
        seconds_of(click.Context(main), main.params[0], f"{text}s")


@pytest.mark.parametrize("text", [text for text in STRANGE if text])
def test_so_does_the_variable_for_waiting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InvalidArgumentError, match="must be a number of seconds, 0 or more"):
        wait_seconds()


def test_a_number_of_the_code_passes() -> None:
    assert Whole(min=1).convert(3, None, None) == 3
    assert Number(0.5, 9).convert("2.5", None, None) == 2.5
    with pytest.raises(click.BadParameter, match="range"):
        Whole(min=1).convert("0", None, None)


def test_the_help_shows_no_bound_that_is_none() -> None:
    for name, each in parameters(main):
        if isinstance(each, click.Option):
            shown = each.get_help_record(click.Context(main))
            assert shown is None or "None" not in shown[1], name
