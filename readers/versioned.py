"""The candidates of a route where a label or a key says which version of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dspy_registry.readers.arguments import check_text, plain_name
from dspy_registry.readers.queries import Queries
from dspy_registry.registry_store.errors import UnknownLabelError


def versions_of(
    queries: Queries, conditions: tuple[Any, ...], names: str | Iterable[str] | None, label: str | None, key: str | None
) -> tuple[str, ...] | None:
    """Each candidate as `name@version`. None: neither names nor a label say which. Raises as `route`."""
    check_text("label", label)
    check_text("key", key)
    if names is None and label is None:
        return None
    asked = queries.find(*conditions) if names is None else (names,) if isinstance(names, str) else tuple(names)
    chosen = []
    for name in asked:
        versioned = name if label is None or "@" in plain_name(name) else f"{name}@{label}"
        try:
            chosen.append(str(queries.resolve(versioned, key=key)))
        except UnknownLabelError:
            if names is not None:  # what conditions find need not have the label
                raise
    return tuple(chosen)
