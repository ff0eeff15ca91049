"""The writer process, and the clients by which other processes use it. Never imports readers."""

from __future__ import annotations

if __name__ != "dspy_registry.writer":
    raise ImportError(f"{__name__} is a part of dspy_registry: import from dspy_registry, or dspy_registry.writer.")
