"""A reader process that follows changes, so that the demo knows when others see them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from dspy_registry.demo.process import COMMAND, DemoError, end

SECONDS_OF_PATIENCE: Final = 30


class Witness:
    """`dspy-registry watch` as a process of its own, which gives up after SECONDS_OF_PATIENCE without a change."""

    def __init__(self, registry: Path, folder: Path, revision: int) -> None:
        self._stderr_path = folder / "watch.err"
        # From before the newest revision: its first line, which is of that one, shows that it is watching.
        options = ["--json", "--since", str(revision - 1), "--timeout", str(SECONDS_OF_PATIENCE)]
        with self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*COMMAND, "watch", *options, "--path", str(registry)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                start_new_session=True,  # Ctrl-C in the terminal is for the demo, which ends it itself
            )

    def wait_until_ready(self) -> None:
        """Return once it is watching. Raises DemoError."""
        self._next_names()

    def wait_for(self, name: str) -> None:
        """Return once it has seen a change of this module. Raises DemoError."""
        while name not in self._next_names():
            pass

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        end(self._process, SECONDS_OF_PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _next_names(self) -> set[str]:
        """The modules of the next change."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end(self._process, SECONDS_OF_PATIENCE)
            said = self._stderr_path.read_text(errors="replace").strip()
            raise DemoError(f"a reader that watched for changes saw none: {said or 'it was quiet for too long'}")
        return {module["name"] for module in json.loads(line)["modules"]}
