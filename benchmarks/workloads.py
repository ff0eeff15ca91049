"""The stored modules and the queries. They are like those in use, and the same for every store and run.

A module depends only on the seed and its number, so modules can be made again and need not be kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from benchmarks.words import FIELDS, NOUNS, OBJECTS, OWNERS, QUALIFIERS, SKILLS, VERBS
from dspy_registry import ModuleInfo, Requirements

SEED: Final = 20240607
CORE_NAMES: Final = (
    "dspy.Predict",
    "dspy.ChainOfThought",
    "dspy.ReAct",
    "dspy.ProgramOfThought",
    "dspy.MIPROv2",
    "dspy.ColBERTv2",
)
"""The core modules, which every registry has. A registry of size 6 has no other modules."""

SHARED_CAPABILITY: Final = "text_generation"
"""Every second module has this capability: 500,000 of a million."""

_CATEGORIES = ("prediction", "reasoning", "retrieval", "optimization", "evaluation", "extraction", "classification")
_POOLS = ("general", "neural", "optimizer", "batch", "edge")
_LEVELS = ("low", "medium", "high", "very_high")

CAPABILITIES: Final = (
    "reasoning",
    "tool_use",
    "structured_output",
    "semantic_search",
    *(f"{skill}_{thing}" for thing in OBJECTS for skill in SKILLS),
)
"""Capabilities by popularity. The k-th has the weight 1/(k + 3), much as tags have in real use."""

_POPULARITY = tuple(accumulate(1 / (rank + 4) for rank in range(len(CAPABILITIES))))


def module_names(count: int) -> Iterator[str]:
    """The first `count` names of a fixed sequence of distinct names, such as `acme.nlp.SummariseOpenInvoices`."""
    draw = random.Random(SEED)
    seen: set[str] = set()
    while len(seen) < count:
        verb, qualifier, noun = draw.choice(VERBS), draw.choice(QUALIFIERS), draw.choice(NOUNS)
        name = f"{draw.choice(OWNERS)}.{draw.choice(FIELDS)}.{verb}{qualifier}{noun}"
        if name not in seen:
            seen.add(name)
            yield name


def modules(count: int) -> Iterator[ModuleInfo]:
    """The modules that a registry of this size has besides the six core modules."""
    draw = random.Random(SEED + 1)
    for number, name in enumerate(module_names(count - len(CORE_NAMES))):
        yield _module(draw, name, number)


def _module(draw: random.Random, name: str, number: int) -> ModuleInfo:
    wanted = draw.choices(CAPABILITIES, cum_weights=_POPULARITY, k=draw.randint(1, 4))
    if number % 2:
        wanted.append(SHARED_CAPABILITY)
    return ModuleInfo(
        name=name,
        category=draw.choice(_CATEGORIES),
        capabilities=tuple(dict.fromkeys(wanted)),
        requirements=Requirements(
            memory=draw.choices(_LEVELS, cum_weights=(45, 80, 95, 100))[0],
            compute=draw.choices(_LEVELS, cum_weights=(40, 75, 95, 100))[0],
            gpu=draw.random() < 0.1,
        ),
        pool_type=draw.choices(_POOLS, cum_weights=(60, 80, 90, 96, 100))[0],
        estimated_duration=int(draw.lognormvariate(7.2, 1.1)),
        native_available=draw.random() < 0.15,
        metadata={"team": f"team-{number % 97:02}", "release": f"{number % 7}.{number % 13}", "slo_ms": number % 9000},
    )


@dataclass(frozen=True)
class Mix:
    """What a worker does for one request, as a statement. `newcomer_every`: see `processes.Writer`.

    In the statement, `{}` is a capability, drawn by popularity.
    """

    name: str
    request: str
    newcomer_every: int


MIXES: Final = (
    Mix("lookups", "store.get_module(store.find_by_capability({})[0])", 0),
    Mix(
        "routing",
        "store.routing_recommendation(store.find_by_capability({})[0], input_size=5000, optimize_latency=True)",
        0,
    ),
    Mix(
        "churn",
        "store.routing_recommendation(store.find_by_capability({})[0], input_size=5000, optimize_latency=True)",
        10,
    ),
)


def capabilities_asked(infos: Iterable[ModuleInfo], count: int) -> list[str]:
    """Capabilities of these modules, each drawn as often as modules have it."""
    there = sorted({word for info in infos for word in info.capabilities})
    weights = [1 / (CAPABILITIES.index(word) + 4) if word in CAPABILITIES else 0.25 for word in there]
    return random.Random(SEED + 4).choices(there, weights, k=count)


def all_names(size: int) -> list[str]:
    """The names of a registry of this size, core first."""
    return [*CORE_NAMES, *module_names(size - len(CORE_NAMES))]


def shuffled(names: list[str], seed: int = SEED) -> list[str]:
    """The names in a random order that is the same in every run."""
    order = list(names)
    random.Random(seed).shuffle(order)
    return order
