"""The pure parts of a write under pytest-benchmark, one by one: `pytest benchmarks/`.

The rows of `python -m benchmarks` time whole operations against other stores. These show which part of a write got
slower between two commits: `pytest benchmarks/ --benchmark-autosave`, then the same with `--benchmark-compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from benchmarks.workloads import modules
from dspy_registry.registry_store import protocol
from dspy_registry.registry_store.codec import decode_record, encode, seal_record
from dspy_registry.registry_store.layout import FORMAT_VERSION, MAX_RECORD_BYTES
from dspy_registry.registry_store.names import lookup_keys, terms
from dspy_registry.registry_store.records import Provenance
from dspy_registry.registry_store.validation import validate_encoded
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.registry_store.window import Window

pytestmark = pytest.mark.bench

INFO: Final = next(iter(modules(7)))
ENCODED: Final = encode(INFO)
KEPT: Final = Provenance(version=1, revision=2, updated_at=1_700_000_000_000, sequence=6)
RECORD: Final = seal_record(ENCODED, KEPT, FORMAT_VERSION)
REQUEST: Final = protocol.Register(1, 1, ENCODED)
FRAME: Final = protocol.frame(REQUEST)
WORDS: Final = Vocabulary({"tool_use": ("agency",), "agency": ("autonomy",)})
CALLS: Final = Window()

PARTS: Final[dict[str, Callable[[], Any]]] = {
    "validate and encode a module": lambda: validate_encoded(INFO, MAX_RECORD_BYTES),
    "frame a request": lambda: protocol.frame(REQUEST),
    "cut a request from the stream": lambda: list(protocol.FrameReader(protocol.MAX_FRAME_BYTES).feed(FRAME)),
    "terms of a module": lambda: terms(INFO, WORDS),
    "names that find a module": lambda: lookup_keys(INFO.name),
    "seal a record": lambda: seal_record(ENCODED, KEPT, FORMAT_VERSION),
    "check and decode a record": lambda: decode_record(RECORD, INFO.name),
    "add a call to a window": lambda: CALLS.add(120.0),
}


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str, benchmark: Any) -> None:
    benchmark(PARTS[part])
