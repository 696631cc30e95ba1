"""Pairs of back and front pictures: `load_pairs` is the one door for every source."""

from .pairs import COLUMNS, Pairs
from .wardrobe import Wardrobe

SOURCES = {"wardrobe": Wardrobe}

__all__ = ["COLUMNS", "SOURCES", "Pairs", "load_pairs"]


def load_pairs(source: str, *, split: str, size: int, count: int) -> Pairs:
    """The first `count` pairs of a split, `size` x `size` px, as a lazy sequence of dicts with the keys `COLUMNS`.

    Raises `ValueError` for an unknown source or split, a size the source cannot make, or a count it does not have.
    """
    if source not in SOURCES:
        raise ValueError(f"there is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    reader = SOURCES[source](split, size)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= reader.capacity:
        raise ValueError(f"count must be a whole number from 1 to {reader.capacity}, not {count!r}.")
    return Pairs(reader, range(count))
