"""Write constraints.txt: what pip chooses today for all extras, on each Python named.

    python tools/constraints.py PYTHON...    # each an interpreter that has pip

A package that gets the same version on every Python is one line; any other is a line for each version, with a marker
that names the Pythons it is for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = "dspy-module-registry"
HEAD = """\
# The exact versions that every make target and CI install. `make constraints` writes this file.
"""


def extras() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return ",".join(re.findall(r"^([a-z-]+) = \[", table, re.MULTILINE))


def pip(python: str, *arguments: str) -> str:
    command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def resolved(python: str) -> dict[str, str]:
    """The version of each package that a new environment of `python` would get."""
    told = pip(python, "install", "--dry-run", "--ignore-installed", "--report", "-", f"{ROOT}[{extras()}]")
    chosen = [entry["metadata"] for entry in json.loads(told)["install"]]
    return {normal(data["name"]): data["version"] for data in chosen if normal(data["name"]) != OURS}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version_of(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def merged(found: dict[str, dict[str, str]]) -> list[str]:
    """The lines for the packages found on each Python.

    >>> merged({"3.10": {"a": "1", "b": "1", "c": "4"}, "3.11": {"a": "1", "b": "2"}, "3.12": {"a": "1", "b": "2"}})
    ... # doctest: +NORMALIZE_WHITESPACE
    ['a==1', "b==1; python_version == '3.10'", "b==2; python_version == '3.11' or python_version == '3.12'", 'c==4']
    """
    lines = []
    for name in sorted({name for packages in found.values() for name in packages}):
        pythons: dict[str, list[str]] = {}
        for python, packages in found.items():
            if name in packages:
                pythons.setdefault(packages[name], []).append(python)
        for version, those in pythons.items():
            marker = " or ".join(f"python_version == '{python}'" for python in those)
            lines.append(f"{name}=={version}" + (f"; {marker}" if len(pythons) > 1 else ""))
    return lines


def main(pythons: list[str]) -> None:
    lines = merged({version_of(python): resolved(python) for python in pythons})
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
