"""`python -m registry_store.check PATH`."""

from __future__ import annotations

import sys

from registry_store.check.run import main

sys.exit(main(sys.argv[1:]))
