"""Finding the DSPy modules of the workers' Python environment, believing none of what it says."""

from __future__ import annotations

from writer.discovery.report import DEFAULT_TIMEOUT, DiscoveryFailure, DiscoveryReport, discover

__all__ = ["DEFAULT_TIMEOUT", "DiscoveryFailure", "DiscoveryReport", "discover"]
