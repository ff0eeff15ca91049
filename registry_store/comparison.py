"""Comparison that a new version is worse than the old one, gathered block by block: a sequential test. Pure.

A block is the calls of both versions between two looks. Of each version it has the calls and the hits: failures, or
calls that were slow. The null hypothesis is that the new version hits at most as often as the old one. For each of some
alternatives, "the new version hits r times as often", the test keeps the logarithm of an e-value:

    e *= P(block | old rate p, new rate q) / P(block | one common rate, the mean of p and q by calls)

p is what was expected of the old version before the block, and q follows from p and r. Whatever the true rates are, as
long as the new one is not above the old one in a block, the expected factor is at most 1. So the mean of the e-values
ever exceeds 1 / alpha with probability alpha at most (Ville's inequality), however often one looks. A wrong p costs
power, and never validity. Both versions are compared in the same minutes, so what slows or breaks both says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

RATIOS: Final[Mapping[float, float]] = {1.5: 0.15, 2.0: 0.45, 3.0: 0.2, 5.0: 0.1, 10.0: 0.05, 30.0: 0.05}
"""The alternatives and their weights, which add up to 1."""
_LEAST_RATE: Final = 0.001
_MOST_RATE: Final = 0.95


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Calls and hits of the old and of the new version between two looks."""

    old_calls: int = 0
    old_hits: int = 0
    new_calls: int = 0
    new_hits: int = 0

    def __bool__(self) -> bool:
        return bool(self.old_calls or self.new_calls)


class Comparison(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The logarithms of the e-values, in the order of RATIOS, and the totals of all blocks."""

    logs: tuple[float, ...] = (0.0,) * len(RATIOS)
    total: Block = Block()

    @property
    def strength(self) -> float:
        """The logarithm of the e-value of all alternatives together. 0.0: nothing is known yet."""
        highest = max(self.logs)
        weighted = zip(self.logs, RATIOS.values(), strict=True)
        return highest + math.log(sum(weight * math.exp(each - highest) for each, weight in weighted))

    @property
    def increase(self) -> float:
        """By how much the new version's share of hits is above the old one's, -1 to 1; 0.0 while one has no calls."""
        total = self.total
        if not total.old_calls or not total.new_calls:
            return 0.0
        return total.new_hits / total.new_calls - total.old_hits / total.old_calls

    def and_block(self, block: Block, rate: float) -> Comparison:
        """The comparison with one more block. `rate` is what was expected of the old version before it, 0 to 1."""
        rate = min(max(rate, _LEAST_RATE), _MOST_RATE)
        logs = tuple(
            before + _log_factor(block, rate, _raised(rate, ratio))
            for before, ratio in zip(self.logs, RATIOS, strict=True)
        )
        added = zip(msgspec.structs.astuple(self.total), msgspec.structs.astuple(block), strict=True)
        return Comparison(logs, Block(*(one + other for one, other in added)))


def _raised(rate: float, ratio: float) -> float:
    """The rate of a version that hits `ratio` times as often; for high rates, one that succeeds that much less."""
    return min(rate * ratio, 1 - (1 - rate) / ratio)


def _log_factor(block: Block, old: float, new: float) -> float:
    calls = block.old_calls + block.new_calls
    if not calls:
        return 0.0
    common = (block.old_calls * old + block.new_calls * new) / calls
    return sum(
        hits * math.log(rate / common) + (each - hits) * math.log((1 - rate) / (1 - common))
        for each, hits, rate in ((block.old_calls, block.old_hits, old), (block.new_calls, block.new_hits, new))
    )
