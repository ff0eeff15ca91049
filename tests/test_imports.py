"""The rules between the packages, read from the source and tried in fresh processes."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGES = ("registry_store", "writer", "readers", "dspy_registry")
ROOMS = ("registry_store", "writer", "readers")
OWN_PARTS = ("cli", "demo", "explorer", "integrations", "router")
pytestmark = pytest.mark.xdist_group("imports")  # one process parses the source, once

# What each part of the package, and each other folder of the repository, may import of ours.
MAY_IMPORT = {
    "registry_store": {"registry_store"},
    "writer": {"registry_store", "writer"},
    "readers": {"registry_store", "readers"},
    "dspy_registry": {*ROOMS, *OWN_PARTS},
    "benchmarks": {*ROOMS, *OWN_PARTS, "benchmarks", "dspy_registry"},
    "tests": {*ROOMS, *OWN_PARTS, "benchmarks", "tests", "dspy_registry"},
}
OURS = {*ROOMS, *OWN_PARTS, "benchmarks", "tests", "dspy_registry"}
# For users: it imports the public face, as their programs do.
A_USERS_PROGRAM = "dspy_registry/demo/acme.py"
IMPORTING = (ast.Import, ast.ImportFrom, ast.Call)
TAKES_A_MODULE_NAME = {"__import__", "find_spec", "import_module", "resolve_name", "run_module"}
HEAVY = {"asyncio", "click", "dspy", "rich", "watchfiles"}
LONGEST_FILE = 400
KEPT_SHORT = (*PACKAGES, "benchmarks", "tests")
# Put together here, so that this file does not name them itself.
INDEX_HOSTS = tuple(".".join(parts).encode() for parts in (("pypi", "org"), ("pythonhosted", "org")))


@functools.cache
def parsed(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


@functools.cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """All within, as `ast.walk` finds them."""
    return tuple(ast.walk(tree))


def texts(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    files = sorted(path for path in (root / package).rglob("*.py") if not in_a_linked_room(path, root))
    assert files, f"{root / package} holds no Python file: nothing would be checked"
    for path in files:
        yield path.relative_to(root), path.read_text(encoding="utf-8")


def sources(root: Path, package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path, text in texts(root, package):
        yield path, parsed(text, str(root / path))


def in_a_linked_room(path: Path, root: Path) -> bool:
    """The rooms are links in the package; each is looked at where it really is."""
    return any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(root))


def literal_start(node: ast.expr) -> str:
    """The text a literal, an f-string or a concatenation begins with; "" when it is computed."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[first, *_]):
            return literal_start(first)
        case ast.BinOp(left=left):
            return literal_start(left)
    return ""


def called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the module of each import statement, and of each call that imports by name."""
    for node in nodes(tree):
        if isinstance(node, IMPORTING):
            yield from ((node.lineno, module) for module in imported(node))


def imported(node: ast.Import | ast.ImportFrom | ast.Call) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(level=0, module=str(module)):
            return [module]
        case ast.Call() if called(node) in TAKES_A_MODULE_NAME:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords)]
            return [literal_start(argument) for argument in given]
    return []


def room_of(module: str) -> str:
    """The part of the project that a module is in; the package itself is the public face."""
    first, *rest = module.replace(":", ".").split(".")
    return rest[0] if first == "dspy_registry" and rest and rest[0] in (*ROOMS, *OWN_PARTS) else first


def forbidden_imports(root: Path) -> list[str]:
    """Imports of a part that the importing one must not know, and of a room by its bare name."""
    return [
        f"{path}:{line} imports {module}"
        for package, allowed in MAY_IMPORT.items()
        for path, tree in sources(root, package)
        for line, module in imports(tree)
        if path.as_posix() != A_USERS_PROGRAM
        and ((room_of(module) in OURS and room_of(module) not in allowed) or module.split(".")[0] in ROOMS)
    ]


def import_circles(root: Path) -> list[list[str]]:
    """A group of modules that import each other, type-checking imports included; the lazy face is left out."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path, tree in sources(root, package):
            name = ".".join(path.with_suffix("").parts)
            name = name if package == "dspy_registry" else f"dspy_registry.{name}"
            graph[name.removesuffix(".__init__")] = {
                target for node in nodes(tree) if isinstance(node, IMPORTING) for target in targets(node)
            }
    del graph["dspy_registry"]
    try:
        tuple(TopologicalSorter({name: goals & set(graph) for name, goals in graph.items()}).static_order())
    except CycleError as error:
        return [error.args[1]]
    return []


def targets(node: ast.AST) -> Iterator[str]:
    """What an import statement may load: the module, and each name in case it is a module too."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(level=0, module=str(module), names=names):
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)


def lmdb_openers(root: Path) -> set[str]:
    """The files that open an environment: `lmdb.Environment` may be named, not called."""
    return {
        path.as_posix()
        for package in PACKAGES
        for path, text in texts(root, package)
        if "lmdb" in text and opens_lmdb(parsed(text, str(root / path)))
    }


def opens_lmdb(tree: ast.Module) -> bool:
    modules, classes = {"lmdb"}, set[str]()
    for node in nodes(tree):
        match node:
            case ast.Import(names=names):
                modules |= {alias.asname or alias.name for alias in names if alias.name == "lmdb"}
            case ast.ImportFrom(module="lmdb", names=names):
                if any(alias.name in ("open", "*") for alias in names):
                    return True
                classes |= {a.asname or a.name for a in names if a.name == "Environment"}
    for node in nodes(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="open") if name in modules:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="Environment")):
                if name in modules:
                    return True
            case ast.Call(func=ast.Name(id=name)) if name in classes:
                return True
    return False


def long_files(root: Path) -> list[str]:
    lengths = {path: len(text.splitlines()) for folder in KEPT_SHORT for path, text in texts(root, folder)}
    return [f"{path}: {lines}" for path, lines in lengths.items() if lines > LONGEST_FILE]


def committed_files(root: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def naming_an_index(files: list[Path]) -> list[Path]:
    return [path for path in files if any(host in path.read_bytes() for host in INDEX_HOSTS)]


def with_an_unfinished_merge(files: list[Path]) -> list[Path]:
    """The files in which git left both sides of a conflict."""
    marks = (b"<" * 7 + b" ", b">" * 7 + b" ")
    return [path for path in files if any(line.startswith(marks) for line in path.read_bytes().splitlines())]


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The top-level modules of a fresh process after `code`."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{report}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def crafted(tmp_path: Path) -> Path:
    """A small tree that keeps every rule; a self-test breaks one."""
    for package in KEPT_SHORT:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("import json\n")
    opener = tmp_path / "registry_store" / "opening.py"
    opener.write_text("import lmdb\nenvironment = lmdb.open('x')\n")
    for room in ROOMS:
        (tmp_path / "dspy_registry" / room).symlink_to(tmp_path / room)
    return tmp_path


def test_packages_keep_the_import_rules() -> None:
    assert forbidden_imports(ROOT) == []


def test_no_module_imports_in_a_circle() -> None:
    assert import_circles(ROOT) == []


def test_a_circle_is_found(crafted: Path) -> None:
    assert import_circles(crafted) == []
    (crafted / "writer" / "one.py").write_text("def f():\n    from dspy_registry.writer import two\n")
    (crafted / "writer" / "two.py").write_text("if TYPE_CHECKING:\n    from dspy_registry.writer.one import f\n")
    assert set(import_circles(crafted)[0]) == {"dspy_registry.writer.one", "dspy_registry.writer.two"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_to_be_a_second_copy(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {room} is a part of dspy_registry: import from dspy_registry, or dspy_registry.{room}."
    )


def test_only_the_environment_module_opens_lmdb() -> None:
    assert lmdb_openers(ROOT) == {"registry_store/opening.py"}


def test_files_stay_short() -> None:
    assert long_files(ROOT) == []


def test_committed_files_name_no_package_index() -> None:
    files = committed_files(ROOT)
    assert files
    assert naming_an_index(files) == []


def test_committed_files_hold_no_unfinished_merge() -> None:
    assert with_an_unfinished_merge(committed_files(ROOT)) == []


def test_importing_the_face_loads_nothing(tmp_path: Path) -> None:
    loaded = loaded_by("import dspy_registry", tmp_path)
    assert "dspy_registry" in loaded
    assert loaded & (HEAVY | {"lmdb", "msgspec"}) == set()


def test_reading_loads_nothing_heavy(seeded_registry: Path, tmp_path: Path) -> None:
    reading = """
from dspy_registry import Registry
with Registry() as registry:
    registry.get_module("dspy.ChainOfThought")
    registry.find(capabilities=("reasoning",), max_memory="medium")
    registry.routing_recommendation("dspy.ColBERTv2", input_size=5000)
    with registry.snapshot() as snapshot:
        snapshot.get_module("dspy.Predict")
"""
    no_writer = "assert not [name for name in sys.modules if name.startswith('dspy_registry.writer')]"
    loaded = loaded_by(f"{reading}\nimport sys\n{no_writer}", tmp_path)
    assert "lmdb" in loaded
    assert loaded & HEAVY == set()


def test_reading_loads_nothing_that_few_readers_need(seeded_registry: Path, tmp_path: Path) -> None:
    late = ("readers.probes", "readers.near_words", "readers.snapshot", "registry_store.circuits")
    reading = f"""
import sys
from dspy_registry import Registry
with Registry() as registry:
    registry.route("reasoning")
assert not [name for name in {late} if f"dspy_registry.{{name}}" in sys.modules]
"""
    assert "lmdb" in loaded_by(reading, tmp_path)


def test_a_tree_that_keeps_the_rules_passes(crafted: Path) -> None:
    assert forbidden_imports(crafted) == []
    assert lmdb_openers(crafted) == {"registry_store/opening.py"}
    assert long_files(crafted) == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("registry_store", "import dspy_registry.writer"),
        ("registry_store", "def late(): from dspy_registry.readers.registry import Registry"),
        ("registry_store", "from dspy_registry import Registry"),
        ("writer", "import dspy_registry.readers.registry as registry"),
        ("writer", "import importlib; importlib.import_module('dspy_registry.readers.registry')"),
        ("writer", "import importlib; importlib.import_module(name='dspy_registry.readers')"),
        ("writer", "from dspy_registry.cli import console"),
        ("readers", "from dspy_registry.writer.store import Store"),
        ("readers", "if TYPE_CHECKING: from dspy_registry.writer.client.client import WriterClient"),
        ("readers", "__import__('dspy_registry.writer')"),
        ("readers", "part = 'client'; import_module(f'dspy_registry.writer.{part}')"),
        ("readers", "part = 'client'; import_module('dspy_registry.writer.' + part)"),
        ("readers", "pkgutil.resolve_name('dspy_registry.writer:RegistryWriter')"),
        ("readers", "import benchmarks"),
        ("dspy_registry", "from readers.registry import Registry"),
        ("tests", "import writer"),
    ],
)
def test_a_forbidden_import_is_found(crafted: Path, package: str, line: str) -> None:
    (crafted / package / "wrong.py").write_text(f"\n{line}\n")
    assert [found.split()[0] for found in forbidden_imports(crafted)] == [f"{package}/wrong.py:2"]


@pytest.mark.parametrize(
    "code",
    [
        "import lmdb\nlmdb.open('x')",
        "import lmdb as store\nstore.open('x')",
        "import lmdb\nopener = lmdb.open",
        "import lmdb\nlmdb.Environment('x')",
        "from lmdb import open as opener",
        "from lmdb import Environment as E\nE('x')",
    ],
)
def test_a_second_opener_is_found(crafted: Path, code: str) -> None:
    (crafted / "writer" / "wrong.py").write_text(code)
    assert "writer/wrong.py" in lmdb_openers(crafted)


def test_naming_the_environment_type_is_not_opening_it(crafted: Path) -> None:
    typed = "import lmdb\ndef f(env: lmdb.Environment) -> None: env.begin()\n"
    (crafted / "writer" / "typed.py").write_text(typed)
    assert "writer/typed.py" not in lmdb_openers(crafted)


def test_a_long_file_is_found(crafted: Path) -> None:
    for folder in KEPT_SHORT:
        (crafted / folder / "long.py").write_text("x = 1\n" * (LONGEST_FILE + 1))
    assert long_files(crafted) == [f"{folder}/long.py: {LONGEST_FILE + 1}" for folder in KEPT_SHORT]


@pytest.mark.parametrize("host", INDEX_HOSTS)
def test_a_named_index_is_found(tmp_path: Path, host: bytes) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    clean, named = tmp_path / "clean.md", tmp_path / "named.toml"
    clean.write_bytes(b"the package index")
    named.write_bytes(b'index-url = "https://' + host + b'/simple"')
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert naming_an_index(committed_files(tmp_path)) == [named]


def test_an_unfinished_merge_is_found(tmp_path: Path) -> None:
    merged, unmerged = tmp_path / "merged.md", tmp_path / "unmerged.md"
    merged.write_text("<<< not a mark >>>\n=======\n")
    unmerged.write_text(f"{'<' * 7} HEAD\nours\n=======\ntheirs\n{'>' * 7} branch\n")
    assert with_an_unfinished_merge([merged, unmerged]) == [unmerged]


def test_a_loaded_module_is_seen(tmp_path: Path) -> None:
    assert "asyncio" not in loaded_by("", tmp_path)
    assert "asyncio" in loaded_by("import asyncio", tmp_path)
