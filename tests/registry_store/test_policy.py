"""Policies: which declaration decides which field, which limits a call has, and what is refused."""

from __future__ import annotations

import pytest

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.policy import (
    CLIENT,
    DEFAULT,
    MANIFEST,
    Declaration,
    Limit,
    Policy,
    check_policy,
    effective_policy,
    limits_of,
)


def declared(pattern: str, source: str = CLIENT, **fields: float) -> Declaration:
    return Declaration(pattern, source, Policy(**fields))  # type: ignore[arg-type]


def test_each_field_is_decided_by_itself() -> None:
    found = effective_policy(
        [
            declared("pool:neural", max_timeout=1, open_seconds=1, window_calls=10),
            declared("acme.*", max_timeout=2, open_seconds=2),
            declared("acme.Qa", max_timeout=3),
        ],
        "acme.Qa",
        "neural",
    )
    assert found == Policy(max_timeout=3, open_seconds=2, window_calls=10)


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [
        (declared("pool:neural"), declared("*", DEFAULT)),
        (declared("*"), declared("acme.*", DEFAULT)),
        (declared("acme.*"), declared("acme.Q?", DEFAULT)),
        (declared("acme.Q?"), declared("acme.Qa", DEFAULT)),
        (declared("acme.Qa", DEFAULT), declared("acme.Qa", MANIFEST)),
        (declared("acme.Qa", MANIFEST), declared("acme.Qa", CLIENT)),
        (declared("pool:neural", DEFAULT), declared("pool:neural", CLIENT)),
    ],
)
def test_precedence(weaker: Declaration, stronger: Declaration) -> None:
    pair = [weaker._replace(policy=Policy(max_timeout=1)), stronger._replace(policy=Policy(max_timeout=2))]
    assert effective_policy(pair, "acme.Qa", "neural").max_timeout == 2
    assert effective_policy(pair[::-1], "acme.Qa", "neural").max_timeout == 2


def test_what_does_not_fit_says_nothing() -> None:
    assert effective_policy([declared("acme.*", max_timeout=2), declared("pool:x", max_timeout=2)], "b.Qa", "y") == (
        Policy()
    )


def test_the_limit_of_a_pool_is_shared_by_its_modules() -> None:
    policies = [
        declared("pool:neural", max_concurrency=8),
        declared("pool:neural", MANIFEST, max_concurrency=9),
        declared("acme.*", max_concurrency=4),
    ]
    assert effective_policy(policies, "b.Qa", "neural").max_concurrency is None
    assert limits_of(policies, "b.Qa", "neural") == (Limit("pool:neural", 8),)
    assert limits_of(policies, "acme.Qa", "neural") == (Limit("module:acme.Qa", 4), Limit("pool:neural", 8))
    assert limits_of(policies, "b.Qa") == ()


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        (Policy(), ("sets nothing",)),
        (Policy(max_concurrency=0, max_timeout=-1.0), ("max_concurrency", "max_timeout")),
        (Policy(max_concurrency=True), ("max_concurrency",)),
        (Policy(max_timeout=float("nan")), ("max_timeout",)),
        (Policy(max_timeout="3"), ("max_timeout",)),  # type: ignore[arg-type]
        (Policy(failure_share=1.5), ("failure_share",)),
        (Policy(minimum_failures=5, window_calls=4), ("never open",)),
        ({"max_timeout": 3}, ("not a Policy",)),
    ],
)
def test_one_error_names_all_that_is_wrong(policy: object, wrong: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_policy("acme.*", policy)
    assert all(part in str(caught.value) for part in wrong)


@pytest.mark.parametrize("pattern", ["", "pool:", 3, "a\nb", "x" * 300])
def test_patterns_that_are_refused(pattern: object) -> None:
    with pytest.raises(InvalidArgumentError, match="pattern"):
        check_policy(pattern, Policy(max_timeout=1))


def test_sound_policies_pass() -> None:
    for pattern in ("acme.*", "pool:neural", "acme.Qa"):
        check_policy(pattern, Policy(max_concurrency=4, max_timeout=2, failure_share=0.3))
