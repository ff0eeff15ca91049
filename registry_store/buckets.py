"""The buckets of a weighted label: which version a key gets, and how few keys move when weights change. Pure functions.

A label with weights is a table of BUCKETS buckets, stored as runs. Each bucket has one version. A key is hashed to a
bucket. When weights change, versions that shrink give buckets to versions that grow. No other bucket changes its
version, so no more keys move than necessary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

BUCKETS: Final = 10_000
MAX_VERSIONS: Final = 16
"""How many versions one label may name."""

LARGEST_WEIGHT: Final = 1e300
"""The sum of larger ones could be infinite."""

Run = tuple[int, int]
"""A version, and how many buckets in a row have it."""


class Hash(Protocol):
    """What hashlib's hashes have."""

    def copy(self) -> Hash: ...
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


def hash_of(name: str, label: str) -> Hash:
    """The hash of all but the key. It is begun once for a label. hashlib is loaded only by those who need it."""
    from hashlib import blake2b

    return blake2b(f"{name}\0{label}\0".encode("utf-8", "surrogatepass"), digest_size=8)


def bucket_in(begun: Hash, key: str) -> int:
    """The bucket of a key for a label of a module, 0 to BUCKETS - 1, from `hash_of` the two.

    It is BLAKE2b of eight bytes over the three, as a number, modulo BUCKETS: the same in every process. Other modules
    and labels give other buckets.
    """
    whole = begun.copy()
    whole.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(whole.digest(), "big") % BUCKETS


def version_at(runs: Iterable[Run], bucket: int) -> int:
    """The version of a bucket. Raises ValueError if the runs are too short."""
    for version, length in runs:
        bucket -= length
        if bucket < 0:
            return version
    raise ValueError("the runs are shorter than the table")


def shares(runs: Iterable[Run]) -> dict[int, int]:
    """How many buckets each version has."""
    counted: Counter[int] = Counter()
    for version, length in runs:
        counted[version] += length
    return dict(counted)


def heaviest(runs: Iterable[Run]) -> int:
    """The version with most buckets; of several, the newest. A label means this version if no key is given."""
    counted = shares(runs)
    return max(counted, key=lambda version: (counted[version], version))


def weight_problems(weights: Mapping[int, Any]) -> list[str]:
    """What is wrong with the weights of a label, one line each."""
    problems = [
        f"the weight of version {version} is {weight!r}, it must be a number above 0"
        for version, weight in weights.items()
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= LARGEST_WEIGHT
    ]
    if not weights:
        problems.append("it names no version")
    if len(weights) > MAX_VERSIONS:
        problems.append(f"it names {len(weights)} versions, the limit is {MAX_VERSIONS}")
    return problems


def targets(weights: Mapping[int, float]) -> dict[int, int]:
    """Buckets by version, BUCKETS in all. Shares are rounded down, and what is left goes to the largest remainders.

    Each version has at least one bucket.
    """
    total = sum(weights.values())
    exact = {version: weight / total * BUCKETS for version, weight in weights.items()}
    counts = {version: max(1, int(share)) for version, share in exact.items()}
    order = sorted(exact, key=lambda version: (exact[version] - counts[version], version), reverse=True)
    left = BUCKETS - sum(counts.values())
    for version in order[: max(0, left)]:
        counts[version] += 1
    for _ in range(-left):  # versions of tiny weight got a bucket each: the largest ones give them
        counts[max(counts, key=lambda version: (counts[version], version))] -= 1
    return counts


def assign(weights: Mapping[int, float], standing: Sequence[Run] = ()) -> tuple[Run, ...]:
    """The runs for these weights. As few buckets as possible change from the `standing` runs; (): a new label.

    The table of a new label is in order of versions. `weight_problems` must find nothing in the weights.
    """
    wanted = targets(weights)
    if not standing:
        return tuple(sorted(wanted.items()))
    spare = {version: count - wanted.get(version, 0) for version, count in shares(standing).items()}
    missing = [[version, wanted[version] - shares(standing).get(version, 0)] for version in sorted(wanted)]
    takers = [taker for taker in missing if taker[1] > 0]
    runs: list[Run] = []
    for version, length in standing:
        given = min(length, max(0, spare[version]))
        spare[version] -= given
        while given:
            taker = takers[0]
            taken = min(given, taker[1])
            _append(runs, taker[0], taken)
            given, taker[1], length = given - taken, taker[1] - taken, length - taken
            if not taker[1]:
                takers.pop(0)
        _append(runs, version, length)
    return tuple(runs)


def _append(runs: list[Run], version: int, length: int) -> None:
    if length and runs and runs[-1][0] == version:
        runs[-1] = (version, runs[-1][1] + length)
    elif length:
        runs.append((version, length))
