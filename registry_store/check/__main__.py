"""`python -m dspy_registry.registry_store.check PATH`."""

from __future__ import annotations

import sys

from dspy_registry.registry_store.check.checker import main

sys.exit(main(sys.argv[1:]))
