"""The types of options and arguments that are numbers. click's own take what `int` and `float` take, "nan" too."""

from __future__ import annotations

from typing import Any

import click

from dspy_registry.registry_store.number_text import NUMBER_EXPECTED, WHOLE_EXPECTED, number, whole_number


class Whole(click.IntRange):
    """A whole number within bounds; None: no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number of a text. Values of the code, such as defaults, pass."""
        if isinstance(value, str) and whole_number(value) is None:
            self.fail(f"{value!r} is not a whole number: {WHOLE_EXPECTED}.", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


class Number(click.FloatRange):
    """A finite number within bounds; None: no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number of a text. Values of the code, such as defaults, pass."""
        if isinstance(value, str) and number(value) is None:
            self.fail(f"{value!r} is not a number: {NUMBER_EXPECTED}.", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()
