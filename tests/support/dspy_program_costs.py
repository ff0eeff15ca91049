"""What each call of the language model in `dspy_program` costs; apart, so that its tests need not import dspy."""

from __future__ import annotations

from typing import Final

TOKENS_IN: Final = 11
TOKENS_OUT: Final = 7
COST: Final = 0.25
