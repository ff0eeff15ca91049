"""Walks the modules of a root package and reports its classes. Runs in the workers' interpreter.

So it uses only the standard library, of Python 3.9 or newer, like `facts` and `probe`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

# Relative, because in that interpreter these files are a package of another name (see probe_run.py).
from .facts import Families, clean, complaint, hide_environment

MOST_FOLDERS = 1000
TEST_MODULES = ("test", "tests", "testing", "conftest")


class Journal(Protocol):
    """Where findings go, one record at a time."""

    def write(self, what: str, /, **fields: Any) -> None: ...


def explore_dspy(journal: Journal) -> Families | None:
    """Report DSPy and the public names of its subpackages. None when DSPy cannot be imported."""
    dspy = load("dspy", "dspy", journal)
    if dspy is None:
        return None
    if importlib.util.find_spec("dspy.experimental") is not None:  # DSPy does not load it by itself
        load("dspy.experimental", "dspy", journal)
    declared = [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith("dspy.") and name.count(".") == 1 and hasattr(module, "__all__")
    ]
    families = Families(dspy, [dspy, *declared])
    explorer = Explorer("dspy", journal, families)
    for module in (dspy, *declared):
        explorer.look(module.__name__, module)
    journal.write("end")
    return families


def explore_package(root: str, skip: frozenset[str], journal: Journal, families: Families) -> None:
    """Report the root and all its public submodules except those to skip."""
    # So that modules that import these fail at once, instead of hanging too.
    sys.modules.update(dict.fromkeys(skip))  # type: ignore[arg-type]
    explorer = Explorer(root, journal, families)
    pending = [root]
    while pending:
        name = pending.pop(0)
        module = None if name in skip else load(name, root, journal)
        if module is not None:
            explorer.look(name, module)
            pending[:0] = explorer.submodules(name, module)
    journal.write("end")


def load(name: str, root: str, journal: Journal) -> types.ModuleType | None:
    """The imported module. None, and a record in the journal, when importing it raises anything."""
    journal.write("at", module=name)
    try:
        module = importlib.import_module(name)
        hide_environment()
        return module
    except BaseException as error:  # SystemExit and KeyboardInterrupt count as failures
        hide_environment()
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        journal.write("failed", name=name, reason=complaint(error), absent=absent and name == root)
        return None


class Explorer:
    """Reports the classes that the modules of one root export."""

    def __init__(self, root: str, journal: Journal, families: Families) -> None:
        self._root = root
        self._journal = journal
        self._families = families
        self._keys: dict[int, str] = {}
        self._alive: list[type] = []  # an id means something only while its object lives

    def look(self, home: str, module: types.ModuleType) -> None:
        """Report the DSPy classes that `module` exports. It was imported as `home`."""
        try:
            if home == self._root:
                top = home.partition(".")[0]
                self._journal.write("version", package=top, version=_version(top))
            for name, cls in self._exports(home, module):
                self._report(f"{home}.{name}", cls)
        except BaseException as error:
            self._fail(home, error)

    def submodules(self, home: str, module: types.ModuleType) -> list[str]:
        """The public submodules in alphabetical order. Empty when `module` is no package.

        A file with a name that no import statement can contain is a program, not a module.
        """
        try:
            found = [name for _, name, _ in pkgutil.iter_modules(getattr(module, "__path__", ()))]
        except BaseException as error:
            self._fail(home, error)
            return []
        found += self._plain_folders(home, getattr(module, "__path__", ()), set(found))
        public = (name for name in found if name.isidentifier() and not name.startswith("_"))
        return [f"{home}.{name}" for name in sorted(public) if not _is_test(name)]

    def _plain_folders(self, home: str, path: Iterable[str], known: set[str]) -> list[str]:
        """Folders without `__init__.py` that hold modules: packages too, though `pkgutil` does not list them.

        One that is a link is named as not looked at: it may lead anywhere, and back. So is one of very many folders.
        """
        found = []
        for folder in path:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except (OSError, TypeError, ValueError):
                continue  # not a folder: a zip file, for example
            for entry in entries:
                is_known = entry.name in known or not entry.name.isidentifier() or entry.name.startswith("_")
                if is_known or _is_test(entry.name) or not entry.is_dir():
                    continue
                holds_modules = _holds_modules(entry.path)
                if holds_modules and not entry.is_symlink():
                    found.append(entry.name)
                elif holds_modules is not False:
                    what = (
                        "is a link"
                        if entry.is_symlink()
                        else f"has more than {MOST_FOLDERS} folders, and no module yet"
                    )
                    reason = f"not looked at: a folder without __init__.py that {what}"
                    self._journal.write("failed", name=clean(f"{home}.{entry.name}"), reason=reason, absent=False)
        return found

    def _exports(self, home: str, module: types.ModuleType) -> Iterator[tuple[str, type]]:
        """Classes with a public name that `module` defines, or lists in `__all__`."""
        members = dict(vars(module))
        declared = members.get("__all__")
        listed = set(declared) if isinstance(declared, (list, tuple)) else None
        for name in sorted(n for n in {*members, *(listed or ())} if isinstance(n, str)):
            if name.startswith("_"):
                continue
            try:
                value = members[name] if name in members else getattr(module, name)
                # By its real type: `__class__` may be wrong, or raise.
                if issubclass(type(value), type) and self._offers(home, name, value, listed):
                    yield name, value
            except BaseException as error:
                self._fail(f"{home}.{name}", error)

    def _offers(self, module: str, name: str, cls: type, listed: set[str] | None) -> bool:
        """Whether the name is public in the module, and not something that it only imports."""
        if self._root == "dspy":
            return listed is None or name in listed
        home = cls.__module__
        if not f"{home}.".startswith(f"{self._root}."):
            return False
        if any(_is_test(part) for part in home[len(self._root) :].split(".")):
            return False
        if home == module:
            return True
        return name in listed if listed is not None else home.startswith(f"{module}.")

    def _report(self, name: str, cls: type) -> None:
        try:
            kind = self._families.kind_of(cls)
            if kind is None or (self._root != "dspy" and cls in self._families.public):
                return
            facts = self._families.describe(cls, kind)
            key = self._key(cls, facts["path"])
            self._journal.write("class", key=key, name=clean(name), **facts)
        except BaseException as error:
            self._fail(name, error)

    def _key(self, cls: type, path: str) -> str:
        """A key of the class, the same under all its names. A path is no key: classes made by a function share one."""
        if id(cls) not in self._keys:
            self._alive.append(cls)
            same = sum(key.rpartition("#")[0] == path for key in self._keys.values())
            self._keys[id(cls)] = f"{path}#{same}"
        return self._keys[id(cls)]

    def _fail(self, name: str, error: BaseException) -> None:
        self._journal.write("failed", name=clean(name), reason=complaint(error), absent=False)


def _holds_modules(folder: str) -> bool | None:
    """Whether there is a Python file in a folder or below. None: not in the first thousand folders of more."""
    for number, (_, _, files) in enumerate(os.walk(folder)):
        if any(name.endswith(".py") for name in files):
            return True
        if number > MOST_FOLDERS:
            return None
    return False


def _is_test(part: str) -> bool:
    return part in TEST_MODULES or part.startswith("test_") or part.endswith(("_test", "_tests"))


def _version(package: str) -> str | None:
    """The version of the distribution, else the package's `__version__`. None: not known."""
    try:
        return clean(importlib.metadata.version(package))
    except BaseException:
        pass
    try:
        said = getattr(sys.modules[package], "__version__", None)
        if isinstance(said, str):
            return clean(said)
        names = importlib.metadata.packages_distributions().get(package, [])  # Python 3.10
        return clean(importlib.metadata.version(names[0])) if names else None
    except BaseException:
        return None
