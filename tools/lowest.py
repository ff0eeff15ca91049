"""Print constraints that hold every direct dependency at the lowest version that pyproject.toml allows.

    python tools/lowest.py EXTRA... > lowest.txt

What those dependencies need in turn is left to pip.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?P<bounds>[^;]*)(?P<marker>;.*)?")


def lowest(requirement: str) -> str | None:
    """The requirement at its lower bound; None without one.

    >>> lowest("redis[hiredis]>=5.2,<9"), lowest("tomli>=2; python_version < '3.11'"), lowest("types-PyYAML")
    ('redis==5.2', "tomli==2; python_version < '3.11'", None)
    """
    found = REQUIREMENT.fullmatch(requirement)
    if found is None or (bound := re.search(r">=\s*([^,\s]+)", found["bounds"])) is None:
        return None
    return f"{found['name']}=={bound[1]}{found['marker'] or ''}"


def main(extras: list[str]) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    lines = {line for group in groups for requirement in group if (line := lowest(requirement))}
    sys.stdout.write("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
