"""What all rooms share: records, bytes, the revision word, errors, look-ups. It imports no other room."""

from __future__ import annotations

if __name__ != "dspy_registry.registry_store":
    raise ImportError(
        f"{__name__} is a part of dspy_registry: import from dspy_registry, or dspy_registry.registry_store."
    )
