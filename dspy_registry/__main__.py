"""`python -m dspy_registry`: the command line."""

from __future__ import annotations

from dspy_registry.cli.program import main

if __name__ == "__main__":
    main()
