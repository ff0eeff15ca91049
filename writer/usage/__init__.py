"""Usage statistics: collected by workers, merged by the daemon."""

from __future__ import annotations

from writer.usage.reporter import QUEUE_LENGTH, UsageReporter

__all__ = ["QUEUE_LENGTH", "UsageReporter"]
