"""Finds the DSPy modules, optimizers and retrievers of the workers' Python environment.

Packages are imported in a separate process (`probe_run`, `probe`). All that it reports is
checked (`evaluate`, `infer`).

Each module found carries in its metadata:
  discovered_from  the root it was found under: "dspy", or the name given as a package
  package, version the top-level package, and its version where known
  kind             "module", "optimizer" or "retriever"
  class            where it is defined; the registered name is where it is public, or what the class declares
  ancestor         the nearest known base class, left out for a known class
  description      the first line of its docstring
  parameters       its constructor's: name, required, and default where that is a plain value
  experimental     true or false; deprecated: true, or left out
  aliases          further public names in the same place
  uses, inputs     the predictors of DSPy that its methods name; the names of what `forward` takes
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import DiscoveryError, InvalidArgumentError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.writer.discovery.evaluate import DiscoveryFailure, Evaluation, evaluate, exit_text
from dspy_registry.writer.discovery.infer import one_line
from dspy_registry.writer.discovery.probe_run import Findings, run_probe

__all__ = ["DEFAULT_TIMEOUT", "DiscoveryFailure", "DiscoveryReport", "discover"]

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds. The first import of DSPy takes more than 10 on a busy machine."""

COMPLETING: Final = (
    "Declare what it can do: @module(category=..., capabilities=...) of dspy_registry.integrations.dspy, or a manifest."
)
"""The remedy for a module that is incomplete."""


class DiscoveryReport(msgspec.Struct, frozen=True):
    """What was found, and what could not be looked at.

    `modules` are sorted by name within their root. The roots are in the order asked for, after dspy.
    `python` is the interpreter that was looked through, `dspy_version` None when it has no DSPy.
    `probed` are the roots that are completely known: looked through without a failure, or not
    installed. `looked_through` are these and the roots of which only parts failed.
    """

    modules: tuple[ModuleInfo, ...] = ()
    failures: tuple[DiscoveryFailure, ...] = ()
    python: str = sys.executable
    dspy_version: str | None = None
    probed: tuple[str, ...] = ()
    looked_through: tuple[str, ...] = ()

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Names of modules of which neither category nor capability is known, so that only their names find them."""
        return tuple(info.name for info in self.modules if info.category == "unknown" and not info.capabilities)

    def would_have_found(self, name: str, metadata: Mapping[str, Any]) -> bool:
        """Whether this discovery would have found a module that an earlier one registered.

        False when its root, or the module's part of the root, could not be looked at.
        """
        root = metadata.get("discovered_from")
        if root in self.probed:
            return True
        places = (f"{name}.", f"{metadata.get('class', name)}.")
        failed = tuple(f"{failure.package}." for failure in self.failures)
        return root in self.looked_through and not any(p.startswith(failed) for p in places)


def check_timeout(seconds: float) -> None:
    """Raises InvalidArgumentError unless this is a finite number of seconds above 0."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidArgumentError(f"timeout is {seconds}, it must be a positive number of seconds.")


def discover(
    packages: Sequence[str] = (),
    *,
    python: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> DiscoveryReport:
    """Look through DSPy and `packages` as the interpreter `python` sees them.

    Packages (or modules) are named as in an import statement. In each, discovery finds every public,
    concrete subclass of a DSPy module, optimizer or retriever that the package defines. Names that
    begin with an underscore, and the package's tests, are left out. `python` None is the interpreter
    of this process. Any other interpreter gets this process's environment and working directory.
    `timeout` is in seconds, for all packages together. A package that is not finished by then is a
    failure, and the others are found. Importing runs the packages' code, with this process's rights.

    Raises DiscoveryError when the interpreter cannot be run, InvalidArgumentError for a timeout
    that is not positive. All other errors are in the report.
    """
    check_timeout(timeout)
    interpreter = os.fspath(python) if python is not None else sys.executable
    failures = {name: _NOT_A_NAME for name in packages if not _is_dotted(name)}
    roots = list(dict.fromkeys(["dspy", *(name for name in packages if _is_dotted(name))]))
    findings = run_probe(interpreter, roots[1:], timeout)
    if findings.executable is None and not findings.timed_out:
        raise DiscoveryError(
            f"{interpreter!r} did not run as a Python interpreter: {exit_text(findings.code)}. "
            f"{one_line(findings.noise[-500:], 500)}",
            remedy="Name the workers' Python interpreter (--python), 3.9 or newer.",
        )
    cut_short = f"not finished within the time limit of {timeout:g} s, which --timeout changes"
    if not findings.timed_out:
        cut_short = f"not finished when the interpreter ended: {exit_text(findings.code)}"
    return _report(roots, findings, interpreter, cut_short, failures)


_NOT_A_NAME: Final = "not the name of a package as import statements have it"
_WITHOUT_DSPY: Final = "not looked at, because dspy was not imported"


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _report(
    roots: Sequence[str], findings: Findings, python: str, cut_short: str, failures: dict[str, str]
) -> DiscoveryReport:
    evaluations: dict[str, Evaluation] = {}
    for order, root in enumerate(roots):
        evaluations[root] = evaluation = evaluate(root, findings.traces[order], cut_short)
        if not findings.traces[order]:
            in_turn = root == "dspy" or evaluations["dspy"].looked_through
            evaluation.failures[root] = cut_short if in_turn else _WITHOUT_DSPY
        failures.update(evaluation.failures)
    known = {r: v for r, v in evaluations.items() if v.absent or v.looked_through}
    return DiscoveryReport(
        modules=tuple(_distinct(evaluations)),
        failures=tuple(DiscoveryFailure(name, reason) for name, reason in failures.items()),
        python=findings.executable or python,
        dspy_version=evaluations["dspy"].version,
        probed=tuple(r for r, v in known.items() if v.absent or not v.failures),
        looked_through=tuple(known),
    )


def _distinct(evaluations: Mapping[str, Evaluation]) -> Iterator[ModuleInfo]:
    """Roots may overlap: a class has the name that it has in the first one."""
    owners: dict[str, str] = {}
    for root, evaluation in evaluations.items():
        for info in evaluation.modules:
            if owners.setdefault(info.metadata["class"], root) == root:
                yield info
