"""What worker processes read with. Never imports writer."""

from __future__ import annotations

if __name__ != "dspy_registry.readers":
    raise ImportError(f"{__name__} is a part of dspy_registry: import from dspy_registry, or dspy_registry.readers.")
