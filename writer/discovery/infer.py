"""From the facts of a class to its ModuleInfo. Pure.

A class known by name gets the values of the table. Any other class inherits those of its nearest
known ancestor, and adds what the parameters of its constructor tell.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from dspy_registry.registry_store.records import ModuleInfo, Requirements
from dspy_registry.registry_store.vocabulary import LEVELS
from dspy_registry.writer.core_modules import CORE_MODULES
from dspy_registry.writer.discovery.probe_run import Declared, Parameter, Seen

T = TypeVar("T")
MAX_DESCRIPTION: Final = 200
MAX_PARAMETERS: Final = 64


class Profile(NamedTuple):
    """What a module can do, and what it needs. The duration is in milliseconds."""

    category: str
    capabilities: tuple[str, ...]
    requirements: Requirements
    pool_type: str
    estimated_duration: int


class Hint(NamedTuple):
    """A capability that a constructor parameter of one of these names implies, and the needs it implies."""

    parameters: frozenset[str]
    capability: str
    level: str
    pool_type: str | None
    estimated_duration: int


def _profile(category: str, capabilities: str, memory: str, compute: str, pool_type: str, duration: int) -> Profile:
    needs = Requirements(memory=memory, compute=compute)
    return Profile(category, tuple(capabilities.split()), needs, pool_type, duration)


def _reasoning(capabilities: str, level: str, pool_type: str, duration: int) -> Profile:
    return _profile("reasoning", capabilities, level, level, pool_type, duration)


def _optimizer(capabilities: str, memory: str, compute: str, duration: int) -> Profile:
    return _profile("optimization", capabilities, memory, compute, "optimizer", duration)


def _retriever(capabilities: str, level: str, pool_type: str) -> Profile:
    return _profile("retrieval", capabilities, level, level, pool_type, 500)


_CODE: Final = "complex_reasoning code_generation tool_use iterative"
_SEARCH: Final = "semantic_search embeddings"
_PROMPTS: Final = "prompt_optimization"
_DEMOS: Final = "few_shot_learning"

KNOWN: Final[dict[str, Profile]] = {
    **{info.name: Profile(*msgspec.structs.astuple(info)[1:6]) for info in CORE_MODULES},
    "dspy.ReActV2": _reasoning("reasoning tool_use iterative", "medium", "general", 5_000),
    "dspy.CodeAct": _reasoning(_CODE, "high", "optimizer", 10_000),
    "dspy.RLM": _reasoning(f"{_CODE} long_context", "high", "optimizer", 60_000),
    "dspy.MultiChainComparison": _reasoning("reasoning explanation self_consistency", "medium", "general", 3_000),
    "dspy.Flex": _profile(
        "prediction",
        "basic_generation structured_output code_generation tool_use",
        "medium",
        "medium",
        "general",
        5_000,
    ),
    "dspy.BestOfN": _profile("refinement", "reward_guided sampling", "medium", "medium", "general", 10_000),
    "dspy.Refine": _profile(
        "refinement",
        "reward_guided self_refinement iterative",
        "medium",
        "medium",
        "general",
        10_000,
    ),
    "dspy.evaluate.SemanticF1": _profile("evaluation", "evaluation", "medium", "medium", "general", 3_000),
    "dspy.evaluate.CompleteAndGrounded": _profile(
        "evaluation", "evaluation groundedness", "medium", "medium", "general", 6_000
    ),
    "dspy.LabeledFewShot": _optimizer(_DEMOS, "low", "low", 1_000),
    "dspy.KNNFewShot": _optimizer(f"{_DEMOS} embeddings", "medium", "medium", 10_000),
    "dspy.BootstrapFewShot": _optimizer(f"{_DEMOS} bootstrapping", "medium", "high", 60_000),
    "dspy.BootstrapFewShotWithRandomSearch": _optimizer(
        f"{_DEMOS} bootstrapping hyperparameter_optimization", "medium", "high", 300_000
    ),
    "dspy.BootstrapFewShotWithOptuna": _optimizer(
        f"{_DEMOS} bootstrapping hyperparameter_optimization", "medium", "high", 300_000
    ),
    "dspy.InferRules": _optimizer(f"{_PROMPTS} {_DEMOS} bootstrapping rule_induction", "medium", "high", 300_000),
    "dspy.COPRO": _optimizer(_PROMPTS, "medium", "high", 300_000),
    "dspy.AvatarOptimizer": _optimizer(f"{_PROMPTS} tool_optimization", "medium", "high", 300_000),
    "dspy.SIMBA": _optimizer(f"{_PROMPTS} {_DEMOS} reflection", "high", "very_high", 300_000),
    "dspy.GEPA": _optimizer(f"{_PROMPTS} reflection evolutionary_search", "high", "very_high", 600_000),
    "dspy.BootstrapFinetune": _optimizer("weight_optimization bootstrapping", "high", "very_high", 3_600_000),
    "dspy.BetterTogether": _optimizer(f"{_PROMPTS} weight_optimization", "high", "very_high", 3_600_000),
    "dspy.Ensemble": _optimizer("ensembling", "low", "low", 1_000),
    "dspy.experimental.ReAnchor": _optimizer("calibration", "medium", "medium", 60_000),
    "dspy.Retrieve": _retriever("semantic_search", "low", "general"),
    "dspy.Embeddings": _retriever(_SEARCH, "medium", "neural"),
    "dspy.EmbeddingsWithScores": _retriever(f"{_SEARCH} similarity_scores", "medium", "neural"),
    "dspy.KNN": _retriever(f"{_SEARCH} example_selection", "low", "neural"),
    # Not public, but what fine-tuning optimizers derive from.
    "dspy.teleprompt.bootstrap_finetune.FinetuneTeleprompter": _optimizer(
        "weight_optimization", "high", "very_high", 3_600_000
    ),
}
"""By public name. A new registry holds the same profiles of the core modules."""

BY_KIND: Final = {
    "module": _profile("unknown", "", "low", "low", "general", 1_000),
    "optimizer": _optimizer("", "medium", "high", 300_000),
    "retriever": _retriever("semantic_search", "low", "general"),
}
"""For classes without a known ancestor, apart from the roots such as dspy.Module."""

HINTS: Final = {
    "module": (
        Hint(frozenset({"tools"}), "tool_use", "medium", None, 5_000),
        Hint(
            frozenset({"interpreter", "interpreter_factory"}),
            "code_generation",
            "high",
            None,
            10_000,
        ),
        Hint(frozenset({"max_iters", "max_iterations"}), "iterative", "low", None, 3_000),
    ),
    "optimizer": (),
    "retriever": (
        Hint(
            frozenset({"embedder", "vectorizer", "embedding_model", "embedding_function"}),
            "embeddings",
            "medium",
            "neural",
            500,
        ),
    ),
}


def infer(seen: Seen, name: str, aliases: Iterable[str], root: str, package: str, version: str | None) -> ModuleInfo:
    """The module of this class, as seen in the root package `root`. Not validated."""
    profile, ancestor = _nearest(seen, name)
    if ancestor != name:
        profile = _with_hints(_with_parts(profile, seen), seen)
    declared = seen.declared or Declared()
    profile = _as_declared(profile, declared)
    metadata: dict[str, Any] = {
        "discovered_from": root,
        "package": package,
        "version": version,
        "kind": seen.kind,
        "class": seen.path,
        "ancestor": ancestor if ancestor != name else None,
        "description": one_line(declared.description or "", MAX_DESCRIPTION)
        or summary(seen.doc)
        or summary(seen.init_doc),
        "parameters": _parameters(seen.parameters),
        "uses": seen.uses or None,
        "inputs": seen.inputs or None,
        "experimental": _is_experimental(seen, name),
        "deprecated": ".. deprecated::" in (seen.doc or "") or None,
        "aliases": sorted(aliases) or None,
    }
    known = {key: value for key, value in metadata.items() if value is not None}
    return ModuleInfo(name, *profile, native_available=False, metadata=known)


def _as_declared(profile: Profile, declared: Declared) -> Profile:
    needs = profile.requirements
    capabilities = declared.capabilities
    return Profile(
        _first(declared.category, profile.category),
        profile.capabilities if capabilities is None else tuple(dict.fromkeys(capabilities)),
        Requirements(
            _first(declared.memory, needs.memory),
            _first(declared.compute, needs.compute),
            _first(declared.gpu, needs.gpu),
        ),
        _first(declared.pool_type, profile.pool_type),
        _first(declared.estimated_duration, profile.estimated_duration),
    )


def _first(declared: T | None, inferred: T) -> T:
    return inferred if declared is None else declared


def summary(doc: str | None) -> str | None:
    """The first line of a docstring after the notices at its start. None: there is no such line."""
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(doc or "")):
        line = one_line(paragraph.strip().partition("\n")[0], MAX_DESCRIPTION)
        if line and not line.startswith(("Experimental:", ".. ")):
            return line
    return None


def one_line(text: str, limit: int) -> str:
    """The text made safe for a terminal: no control characters, no line breaks, single spaces, at most `limit` long."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def _nearest(seen: Seen, name: str) -> tuple[Profile, str | None]:
    for candidate in (name, *seen.mro):
        if candidate in KNOWN:
            return KNOWN[candidate], candidate
    return BY_KIND[seen.kind], None


def _with_parts(profile: Profile, seen: Seen) -> Profile:
    """A module of which no base class tells anything is what the predictors are that it is made of."""
    parts = [KNOWN[name] for name in seen.uses if name in KNOWN]
    if profile != BY_KIND["module"] or not parts:
        return profile
    main = max(parts, key=lambda part: part.estimated_duration)
    needs = [part.requirements for part in parts]
    return Profile(
        main.category,
        tuple(dict.fromkeys(word for part in parts for word in part.capabilities)),
        Requirements(
            max((need.memory for need in needs), key=LEVELS.index),
            max((need.compute for need in needs), key=LEVELS.index),
            any(need.gpu for need in needs),
        ),
        main.pool_type,
        sum(part.estimated_duration for part in parts),
    )


def _with_hints(profile: Profile, seen: Seen) -> Profile:
    parameters = {parameter.name for parameter in seen.parameters or ()}
    for hint in HINTS[seen.kind]:
        if parameters & hint.parameters:
            needs = profile.requirements
            profile = Profile(
                profile.category,
                tuple(dict.fromkeys((*profile.capabilities, hint.capability))),
                Requirements(
                    _at_least(needs.memory, hint.level),
                    _at_least(needs.compute, hint.level),
                    needs.gpu,
                ),
                hint.pool_type or profile.pool_type,
                max(profile.estimated_duration, hint.estimated_duration),
            )
    return profile


def _at_least(level: str, other: str) -> str:
    return max(level, other, key=LEVELS.index)


def _parameters(parameters: list[Parameter] | None) -> list[dict[str, Any]] | None:
    if parameters is None:
        return None
    shown: list[dict[str, Any]] = msgspec.to_builtins(parameters[:MAX_PARAMETERS])
    return shown


def _is_experimental(seen: Seen, name: str) -> bool:
    """Marked by DSPy's decorator, or in a part of a package named `experimental`."""
    marked = (seen.doc or "").lstrip().startswith("Experimental:")
    return marked or "experimental" in (*name.split("."), *seen.path.split("."))
