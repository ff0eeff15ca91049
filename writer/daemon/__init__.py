"""The writer daemon: requests over a Unix socket, committed in groups by the one thread that writes."""

from __future__ import annotations

from writer.daemon.lifecycle import Daemon, Submitted, serve

__all__ = ["Daemon", "Submitted", "serve"]
