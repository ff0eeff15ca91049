"""The examples run as their first lines say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.full
def test_the_example_of_programs_shows_the_second_version_in_both_workers() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "programs"], capture_output=True, text=True, timeout=120, check=True
    )
    for worker in (1, 2):
        for version in (1, 2):
            assert f"worker {worker}: version {version} answers" in done.stdout
