"""Random draws that give the same values on every machine and Python version."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Draws built on `random.Random(seed).random()` alone, the one method whose values Python guarantees."""

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self._next()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._next() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._next() * len(choices))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, with probability proportional to its value."""
        left = self._next() * sum(weights.values())
        for choice, weight in weights.items():
            left -= weight
            if left < 0:
                return choice
        return choice
