"""For tests of cells that processes keep: they need membarrier."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_registry.readers.leases import Leases
from dspy_registry.registry_store import barriers
from tests.support.limit_process import MEMBARRIER

needs_membarrier = pytest.mark.skipif(
    MEMBARRIER is None or not barriers.register(), reason="without membarrier no cell is kept"
)


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    """The limits of an empty folder."""
    return Leases(tmp_path)
