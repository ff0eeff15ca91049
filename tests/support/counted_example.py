"""The example service, with a byte added to $COUNTED for each call of a program: what was really called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "examples"))

import programs  # type: ignore[import-not-found]


def counted(program: Callable[[str], str]) -> Callable[[str], str]:
    def call(question: str) -> str:
        descriptor = os.open(os.environ["COUNTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, b".")
        os.close(descriptor)
        return program(question)

    return call


programs.TARGETS = {name: counted(program) for name, program in programs.TARGETS.items()}

from fastapi_service import app  # type: ignore[import-not-found]  # noqa: E402

__all__ = ["app"]
