"""Calling what the registry chooses: attempts in order, one deadline, limits, probes, reports."""

from __future__ import annotations
