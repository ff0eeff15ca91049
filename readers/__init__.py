"""The reading side: what worker processes use. Never imports writer."""

from __future__ import annotations

from readers.registry import Registry
from readers.routing import CostWeights, Recommendation
from readers.snapshot import Snapshot

__all__ = ["CostWeights", "Recommendation", "Registry", "Snapshot"]
