"""The rules between the packages, read from the source and tried in fresh processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("registry_store", "writer", "readers")
NEVER_IMPORTS = {
    "registry_store": {"writer", "readers", "benchmarks", "tests"},
    "writer": {"readers", "benchmarks", "tests"},
    "readers": {"writer", "benchmarks", "tests"},
}
TAKES_A_MODULE_NAME = {"__import__", "find_spec", "import_module", "resolve_name", "run_module"}
HEAVY = {"asyncio", "click", "dspy", "rich", "watchfiles"}
LONGEST_FILE = 400
KEPT_SHORT = (*PACKAGES, "benchmarks", "tests")
# Put together here, so that this file does not name them itself.
INDEX_HOSTS = tuple(".".join(parts).encode() for parts in (("pypi", "org"), ("pythonhosted", "org")))


def sources(root: Path, package: str) -> Iterator[tuple[Path, ast.Module]]:
    files = sorted((root / package).rglob("*.py"))
    assert files, f"{root / package} holds no Python file: nothing would be checked"
    for path in files:
        yield path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"), str(path))


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
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.expr):
            yield from ((node.lineno, module) for module in imported(node))


def imported(node: ast.stmt | ast.expr) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(level=0, module=str(module)):
            return [module]
        case ast.Call() if called(node) in TAKES_A_MODULE_NAME:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords)]
            return [literal_start(argument) for argument in given]
    return []


def forbidden_imports(root: Path) -> list[str]:
    return [
        f"{path}:{line} imports {module}"
        for package, never in NEVER_IMPORTS.items()
        for path, tree in sources(root, package)
        for line, module in imports(tree)
        if module.replace(":", ".").partition(".")[0] in never
    ]


def lmdb_openers(root: Path) -> set[str]:
    """The files that open an environment: `lmdb.Environment` may be named, not called."""
    return {path.as_posix() for package in PACKAGES for path, tree in sources(root, package) if opens_lmdb(tree)}


def opens_lmdb(tree: ast.Module) -> bool:
    modules, classes = {"lmdb"}, set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules |= {alias.asname or alias.name for alias in names if alias.name == "lmdb"}
            case ast.ImportFrom(module="lmdb", names=names):
                if any(alias.name in ("open", "*") for alias in names):
                    return True
                classes |= {a.asname or a.name for a in names if a.name == "Environment"}
    for node in ast.walk(tree):
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
    lengths = {
        path: len((root / path).read_text(encoding="utf-8").splitlines())
        for folder in KEPT_SHORT
        for path, _ in sources(root, folder)
    }
    return [f"{path}: {lines}" for path, lines in lengths.items() if lines > LONGEST_FILE]


def committed_files(root: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def naming_an_index(files: list[Path]) -> list[Path]:
    return [path for path in files if any(host in path.read_bytes() for host in INDEX_HOSTS)]


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
        (tmp_path / package / "__init__.py").write_text("import registry_store\n")
    opener = tmp_path / "registry_store" / "environment.py"
    opener.write_text("import lmdb\nenvironment = lmdb.open('x')\n")
    return tmp_path


def test_packages_keep_the_import_rules() -> None:
    assert forbidden_imports(ROOT) == []


def test_only_the_environment_module_opens_lmdb() -> None:
    assert lmdb_openers(ROOT) == {"registry_store/environment.py"}


def test_files_stay_short() -> None:
    assert long_files(ROOT) == []


def test_committed_files_name_no_package_index() -> None:
    files = committed_files(ROOT)
    assert files
    assert naming_an_index(files) == []


def test_importing_readers_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = loaded_by("import readers", tmp_path)
    assert {"readers", "registry_store", "lmdb"} <= loaded
    assert loaded & (HEAVY | {"writer"}) == set()


def test_importing_registry_store_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = loaded_by("import registry_store", tmp_path)
    assert "registry_store" in loaded
    assert loaded & (HEAVY | {"writer", "readers"}) == set()


def test_reading_loads_nothing_heavy(seeded_registry: Path, tmp_path: Path) -> None:
    reading = """
from readers import Registry
with Registry() as registry:
    registry.get_module("dspy.ChainOfThought")
    registry.find(capabilities=("reasoning",), max_memory="medium")
    registry.routing_recommendation("dspy.ColBERTv2", input_size=5000)
    with registry.snapshot() as snapshot:
        snapshot.get_module("dspy.Predict")
"""
    assert loaded_by(reading, tmp_path) & (HEAVY | {"writer"}) == set()


def test_a_tree_that_keeps_the_rules_passes(crafted: Path) -> None:
    assert forbidden_imports(crafted) == []
    assert lmdb_openers(crafted) == {"registry_store/environment.py"}
    assert long_files(crafted) == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("registry_store", "import writer"),
        ("registry_store", "def late(): from readers.registry import Registry"),
        ("writer", "import readers.registry as registry"),
        ("writer", "import importlib; importlib.import_module('readers.registry')"),
        ("writer", "import importlib; importlib.import_module(name='readers')"),
        ("readers", "from writer import RegistryWriter"),
        ("readers", "if TYPE_CHECKING: from writer.client import WriterClient"),
        ("readers", "__import__('writer')"),
        ("readers", "part = 'client'; import_module(f'writer.{part}')"),
        ("readers", "part = 'client'; import_module('writer.' + part)"),
        ("readers", "pkgutil.resolve_name('writer:RegistryWriter')"),
        ("readers", "import benchmarks"),
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


def test_a_loaded_module_is_seen(tmp_path: Path) -> None:
    assert "asyncio" not in loaded_by("", tmp_path)
    assert "asyncio" in loaded_by("import asyncio", tmp_path)
