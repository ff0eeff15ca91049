"""A plain-Python model of the registry, and what it may be asked and given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st

from dspy_registry import AmbiguousNameError, ModuleInfo, Requirements, UnknownModuleError
from dspy_registry.registry_store.names import last_part, snake_case
from dspy_registry.registry_store.records import from_plain
from dspy_registry.registry_store.vocabulary import LEVELS

WORDS = ("a", "b", "c", "reasoning", "complex_reasoning")
NAMES = ("dspy.Aa", "dspy.AaBb", "acme.Aa", "acme.AaBb", "x.y.Zz", "x.Zz", "bare", "dspy.Predict", "dspy.ReAct")
ALIASES = ("aa", "Aa", "zz", "short", "dspy.Old", "bare")
ASKED = (*NAMES, *ALIASES, "AaBb", "aa_bb", "Zz", "predict", "re_act", "y.Zz", "missing")
SOURCES = ("core", "manifest:a", "manifest:b", "discovered")
CORE_WORDS = {"complex_reasoning": ("reasoning",)}

names = st.sampled_from(NAMES)
words = st.lists(st.sampled_from(WORDS), max_size=3).map(tuple)
levels = st.sampled_from(LEVELS)
categories = st.sampled_from(("one", "two", "drei ü"))
pools = st.sampled_from(("general", "neural"))
plain_values = st.sampled_from((1, 2.5, True, None, "text", "\0", [1, {"a": []}], {"deep": {"er": 1}}))
needs = st.builds(
    Requirements,
    memory=levels,
    compute=levels,
    gpu=st.booleans(),
    extra=st.dictionaries(st.sampled_from("xy"), plain_values, max_size=1),
)
infos = st.builds(
    ModuleInfo,
    name=names,
    category=categories,
    capabilities=words,
    requirements=needs,
    pool_type=pools,
    estimated_duration=st.integers(0, 5),
    native_available=st.booleans(),
    examples=st.sampled_from(((), ("one",))),
    metadata=st.dictionaries(st.sampled_from("xyz"), plain_values, max_size=2),
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "category": categories,
        "capabilities": words.map(list),
        "estimated_duration": st.integers(0, 5),
        "requirements": st.fixed_dictionaries({}, optional={"memory": levels, "gpu": st.booleans(), "x": st.just(1)}),
        "metadata": st.dictionaries(st.sampled_from("xyz"), plain_values, max_size=2),
    },
)
filters = st.fixed_dictionaries(
    {"capabilities": words},
    optional={
        "category": categories,
        "pool_type": pools,
        "native": st.booleans(),
        "gpu": st.booleans(),
        "max_memory": levels,
        "max_compute": levels,
    },
)


@dataclass(frozen=True)
class Model:
    """What the registry is at one revision. Names are in registration order."""

    modules: dict[str, ModuleInfo] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)  # of modules that are gone too
    layers: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    implied: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(CORE_WORDS))

    def put(self, info: ModuleInfo, source: str) -> Model:
        name = info.name
        if self.modules.get(name) == info:
            return replace(self, sources={**self.sources, name: source})
        return replace(
            self,
            modules={**self.modules, name: info},
            sources={**self.sources, name: source},
            versions={**self.versions, name: self.versions.get(name, 0) + 1},
        )

    def without(self, name: str) -> Model:
        return replace(
            self,
            modules={key: info for key, info in self.modules.items() if key != name},
            layers={key: layers for key, layers in self.layers.items() if key != name},
            aliases={alias: meant for alias, meant in self.aliases.items() if meant != name},
        )

    def layered(self, name: str, layers: dict[str, dict[str, Any]]) -> Model:
        """What sources other than clients declare now: it counts unless a client has the module."""
        model = replace(self, layers={**self.layers, name: layers})
        if self.sources.get(name) == "client" and name in self.modules:
            return model
        if not layers:
            return self.without(name) if name in self.modules else model
        merged: dict[str, Any] = {"name": name}
        source = ""
        for source in sorted(layers, key=("discovered", "core", "manifest:a", "manifest:b").index):
            for key, value in layers[source].items():
                is_mapping = key in ("requirements", "metadata")
                merged[key] = {**merged.get(key, {}), **value} if is_mapping else value
        return model.put(from_plain(merged), source)

    def expanded(self, capabilities: tuple[str, ...]) -> set[str]:
        found, pending = set[str](), list(capabilities)
        while pending:
            word = pending.pop()
            if word not in found:
                found.add(word)
                pending.extend(self.implied.get(word, ()))
        return found

    def find(self, conditions: dict[str, Any]) -> tuple[str, ...]:
        return tuple(name for name, info in self.modules.items() if self._fits(info, **conditions))

    def _fits(self, info: ModuleInfo, capabilities: tuple[str, ...], **conditions: Any) -> bool:
        needs = info.requirements
        exact = {
            "category": info.category,
            "pool_type": info.pool_type,
            "native": info.native_available,
            "gpu": needs.gpu,
        }
        within = {"max_memory": needs.memory, "max_compute": needs.compute}
        return (
            self.expanded(info.capabilities).issuperset(capabilities)
            and all(exact[key] == value for key, value in conditions.items() if key in exact)
            and all(
                LEVELS.index(within[key]) <= LEVELS.index(value) for key, value in conditions.items() if key in within
            )
        )

    def resolve(self, asked: str) -> str | type[Exception]:
        """The full name first, then aliases, then the last part, then its snake_case; in dspy. if several fit."""
        if asked in self.modules:
            return asked
        if asked in self.aliases:
            return self.aliases[asked]
        for form in (last_part, lambda name: snake_case(last_part(name))):
            fits = [name for name in self.modules if form(name) == asked]
            at_home = [name for name in fits if name.startswith("dspy.") and name.count(".") == 1]
            if len(at_home) == 1 or len(fits) == 1:
                return (at_home or fits)[0] if len(at_home) == 1 else fits[0]
            if fits:
                return AmbiguousNameError
        return UnknownModuleError


def has_cycle(implied: dict[str, tuple[str, ...]]) -> bool:
    """Whether a word implies itself."""
    model = Model(implied=implied)
    return any(word in model.expanded(further) for word, further in implied.items())


def agree(queries: Any, model: Model) -> None:
    """Everything that can be asked by name, and the listings."""
    assert dict(queries) == model.modules
    assert list(queries) == list(model.modules)
    assert len(queries) == len(model.modules)
    for asked in ASKED:
        expected = model.resolve(asked)
        if isinstance(expected, str):
            assert queries.get_module(asked) == model.modules[expected]
        elif expected is UnknownModuleError:
            assert queries.has_native(asked) is False  # the error itself looks for similar names, which takes its time
        else:
            with pytest.raises(expected):
                queries.get_module(asked)
        assert (asked in queries) == (asked in model.modules)
    for word in WORDS:
        assert queries.find_by_capability(word) == model.find({"capabilities": (word,)})
    assert queries.find_by_category("one") == model.find({"capabilities": (), "category": "one"})
