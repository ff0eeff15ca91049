"""`python -m registry_store.cli`."""

from __future__ import annotations

from registry_store.cli.program import main

main()
