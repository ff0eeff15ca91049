"""Numbers that people and programs write as text: plain ASCII digits, and nothing else. Pure.

`int` and `float` take more: other scripts' digits, underscores, blanks, "nan", "inf", and, of an integer, thousands
of digits, which raise. All of these are mistakes where a number is asked for.
"""

from __future__ import annotations

import math
import re
from typing import Final

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")
WHOLE_EXPECTED: Final = "write a whole number in plain digits, such as 12"
NUMBER_EXPECTED: Final = "write a number in plain digits, such as 12 or 0.5"


def whole_number(text: str) -> int | None:
    """The integer that a text stands for, with at most 20 digits. None: it is not one."""
    return int(text) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """The finite number that a text stands for, such as 12, 0.5 or 1e-3. None: it is not one."""
    if not _NUMBER.fullmatch(text):
        return None
    found = float(text)
    return found if math.isfinite(found) else None
