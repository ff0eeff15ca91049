"""Looking how many calls each limit counts now: it sees every holder, and takes nothing."""

from __future__ import annotations

from pathlib import Path

from dspy_registry.readers.leases import leases_in
from dspy_registry.readers.limits import LimitedCall
from dspy_registry.registry_store.limits_in_use import LimitInUse, limit_of, limits_in_use, module_of
from dspy_registry.registry_store.policy import Declaration, Limit, Policy


def test_calls_of_this_process_are_seen_and_end(tmp_path: Path) -> None:
    assert limits_in_use(tmp_path) == []
    leases = leases_in(tmp_path)
    limits = (Limit("module:acme.Qa", 3), Limit("pool:general", 100))
    with LimitedCall(leases, limits), LimitedCall(leases, limits), LimitedCall(leases, limits[1:]):
        found = [LimitInUse("module:acme.Qa", 2), LimitInUse("pool:general", 3)]
        assert limits_in_use(tmp_path) == found
        assert limits_in_use(tmp_path, ["pool:general"]) == found[1:]
        third = LimitedCall(leases, limits[:1], 0)
        with third:  # the looks before have taken no place
            assert limits_in_use(tmp_path, ["module:acme.Qa"]) == [LimitInUse("module:acme.Qa", 3)]
    assert limits_in_use(tmp_path) == [LimitInUse("module:acme.Qa", 0), LimitInUse("pool:general", 0)]


def test_what_a_limit_allows_is_what_the_policies_say_now() -> None:
    declared = [
        Declaration("acme.*", "client", Policy(max_concurrency=4)),
        Declaration("pool:neural", "client", Policy(max_concurrency=2)),
    ]
    assert limit_of("module:acme.Qa", declared, {"acme.Qa": "neural"}) == 4
    assert limit_of("pool:neural", declared, {}) == 2
    assert limit_of("pool:general", declared, {}) is None
    assert limit_of("module:other.Qa", declared, {}) is None
    assert (module_of("module:acme.Qa"), module_of("pool:neural")) == ("acme.Qa", "")
