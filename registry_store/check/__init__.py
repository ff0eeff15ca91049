"""Whether a registry holds every invariant that stored bytes can violate."""

from __future__ import annotations

from registry_store.check.inspection import Violation
from registry_store.check.run import check, check_apart

__all__ = ["Violation", "check", "check_apart"]
