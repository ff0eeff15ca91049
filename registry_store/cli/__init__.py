"""The command line: the program, and what the commands of both sides print with."""

from __future__ import annotations

from registry_store.cli.program import main

__all__ = ["main"]
