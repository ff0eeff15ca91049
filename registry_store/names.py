"""Short names of modules, and the terms under which a module is indexed. Pure.

A term is a kind, a colon and a word: `capability:reasoning`. The kind `short` indexes the snake_case of a name's last
dotted part (as a hash), through which `predict` and `Predict` find `dspy.Predict`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from dspy_registry.registry_store.codec import crc32
from dspy_registry.registry_store.layout import MAX_NAME_BYTES
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.vocabulary import Vocabulary

DSPY_PREFIX: Final = "dspy."
"""A short name that fits several modules means the one directly in this package."""

ALL: Final = "all:"
"""The term that every module has. It changes when a module comes or goes. Not stored: `sequences` is its posting."""

_SURELY_SHORT: Final = MAX_NAME_BYTES // 4  # characters

# A word begins at a capital after a lower-case letter or digit, and at the last capital of a run of
# them; but the v of a version (MIPROv2, ColBERTv2) belongs to the run before it.
_WORD_START: Final = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!v\d)[a-z])"


def last_part(name: str) -> str:
    """`ReAct` of `dspy.ReAct`."""
    return name.rpartition(".")[2]


@lru_cache(maxsize=4096)
def snake_case(word: str) -> str:
    """`chain_of_thought` of `ChainOfThought`; `miprov2` of `MIPROv2`. Snake case itself stays as it is."""
    return re.sub(_WORD_START, "_", word).lower()


def is_directly_in_dspy(name: str) -> bool:
    """Whether a module is directly in `dspy.`: `dspy.Predict` is, `dspy.retrievers.Embeddings` is not."""
    return name.startswith(DSPY_PREFIX) and name.count(".") == 1


def lookup_keys(name: str) -> tuple[str, ...]:
    """Every string, except aliases, that may resolve to this module.

    A reader that cached an answer under one of them must drop it when the module changes, comes or goes. What is empty
    or too long to be asked for is left out.
    """
    last = last_part(name)
    word = snake_case(last)
    if last and len(word) <= _SURELY_SHORT:
        found = (name,) if last == name else (name, last)
        return found if word in found else (*found, word)
    return tuple(key for key in dict.fromkeys((name, last, word)) if 0 < len(key.encode()) <= MAX_NAME_BYTES)


def short_terms(name: str) -> tuple[str, ...]:
    """The terms through which short names find this module."""
    word = snake_case(last_part(name))
    return (short_term(word), f"home:{word}") if is_directly_in_dspy(name) else (short_term(word),)


def short_term(word: str) -> str:
    """The term of a short name in snake_case. It has the word's CRC-32, to be short: nearly every module has its own.

    Two words may have the same CRC-32. The look-up then compares the names of the modules that it finds.
    """
    return f"short:{crc32(word.encode()):x}"


def terms(info: ModuleInfo, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Every term under which a module is indexed."""
    return (*attribute_terms(info, vocabulary), *short_terms(info.name))


def attribute_terms(info: ModuleInfo, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Every term under which a module is indexed, except those of short names."""
    needs = info.requirements
    return (
        *[f"capability:{word}" for word in vocabulary.expand(info.capabilities)],
        f"category:{info.category}",
        f"pool:{info.pool_type}",
        "native:yes" if info.native_available else "native:no",
        "gpu:yes" if needs.gpu else "gpu:no",
        f"memory:{needs.memory}",
        f"compute:{needs.compute}",
    )


def are_indexed_alike(one: ModuleInfo, other: ModuleInfo) -> bool:
    """Whether two records of one name have the same terms under one vocabulary, seen without making them."""
    needs, others = one.requirements, other.requirements
    return (
        one.capabilities == other.capabilities
        and (one.category, one.pool_type) == (other.category, other.pool_type)
        and bool(one.native_available) == bool(other.native_available)
        and (bool(needs.gpu), needs.memory, needs.compute) == (bool(others.gpu), others.memory, others.compute)
    )
