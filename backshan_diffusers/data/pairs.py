"""The lazy sequence of rows that every source gives, and the columns of a row."""

from collections.abc import Iterator, Sequence
from typing import Protocol

COLUMNS = (
    "item_id",
    "group_id",
    "back",
    "front",
    "back_person",
    "front_person",
    "back_garments",
    "front_garments",
    "front_head",
    "front_face",
    "attributes",
)


class Source(Protocol):
    """What a source of pairs provides: row `index` as a dict with all `COLUMNS`.

    Args:
        capacity: how many rows it has.
        size: side of its pictures in px.
        key: a text that is another one whenever a row would hold anything else.
    """

    @property
    def capacity(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> str: ...

    def row(self, index: int) -> dict: ...


class Pairs(Sequence):
    """Rows of a source, made when they are asked for. Small to pickle: it holds the source and the row numbers."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = indices

    @property
    def column_names(self) -> list[str]:
        """The keys of a row."""
        return list(COLUMNS)

    @property
    def size(self) -> int:
        """Side of the pictures in px."""
        return self._source.size

    @property
    def key(self) -> str:
        """A text that tells these rows from all others, for the names of caches."""
        return f"{self._source.key} {self._indices!r}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int | slice) -> "dict | Pairs":
        """A row for an integer (negative ones count from the end), a sequence for a slice."""
        if isinstance(index, slice):
            return Pairs(self._source, self._indices[index])
        return self._source.row(self._indices[index])

    def __iter__(self) -> Iterator[dict]:
        return (self._source.row(index) for index in self._indices)

    def select(self, indices: Sequence[int]) -> "Pairs":
        """The rows at these positions, in this order."""
        return Pairs(self._source, [self._indices[index] for index in indices])

    def __repr__(self) -> str:
        return f"Pairs({self._source!r}, {len(self)} rows)"
