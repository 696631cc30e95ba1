"""The lazy sequence of rows that every source gives, the columns of a row, and what may be wrong with a source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MASKS = ("back_person", "front_person", "back_garments", "front_garments", "front_head", "front_face")
"""Columns of masks, which a source may leave empty."""

COLUMNS = ("item_id", "group_id", "back", "front", *MASKS, "attributes")

VIEWS = ("back", "front")
SPLITS = ("train", "validation", "test")

TOLERATED_SHARE = 0.05
"""Share of a source's pairs that may be left out because something is wrong with them."""


class PairsError(ValueError):
    """Pairs that cannot be used; the message is one sentence that names them and says what to do."""


class UnreadablePairError(PairsError):
    """A pair with a picture that cannot be read.

    Args:
        item_id: of the pair.
        reason: which picture, and what is wrong with it.
    """

    def __init__(self, item_id: str, reason: str) -> None:
        super().__init__(item_id, reason)  # both, so that it can be sent from another process
        self.item_id, self.reason = item_id, reason

    def __str__(self) -> str:
        return f"the pair {self.item_id} cannot be used: {self.reason}."


@dataclass(frozen=True)
class Skipped:
    """A pair that is left out, and why."""

    item_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.item_id}: {self.reason}"


@dataclass(frozen=True)
class Findings:
    """What was found out about a split of a source.

    Args:
        skipped: pairs that are left out because something is wrong with them.
        repeated: `item_id` of pairs that are left out because an earlier pair holds the same two files.
        joined_groups: how many groups became one with another because they share a picture.
        total: how many pairs the split had before any was left out; 0 where none can be wrong.
    """

    skipped: tuple[Skipped, ...] = ()
    repeated: tuple[str, ...] = ()
    joined_groups: int = 0
    total: int = 0


def refuse_too_many(skipped: Sequence[Skipped], total: int) -> None:
    """Stop where more is wrong than a few pairs.

    Args:
        skipped: the pairs of `total` that are left out.
        total: how many pairs were looked at.

    Raises:
        PairsError: if they are more than `TOLERATED_SHARE`.
    """
    if len(skipped) > TOLERATED_SHARE * total:
        named = "; ".join(map(str, skipped[:3])) + ("; ..." if len(skipped) > 3 else "")
        raise PairsError(
            f"{len(skipped)} of {total} pairs cannot be used, which is more than {TOLERATED_SHARE:.0%} ({named}):"
            " repair them or take them out."
        )


def refuse_too_many_more(skipped: Sequence[Skipped], rows: "Pairs") -> None:
    """Stop where too many of `rows` cannot be read, or of their split together with those left out before.

    Raises:
        PairsError: as [`refuse_too_many`].
    """
    refuse_too_many(skipped, len(rows))
    refuse_too_many((*rows.findings.skipped, *skipped), max(rows.findings.total, len(rows)))


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


class Column(Sequence):
    """One column of pairs, whose rows are made when its values are asked for.

    Args:
        pairs: of which.
        name: of the column.

    Raises:
        KeyError: if there is no such column.
    """

    def __init__(self, pairs: "Pairs", name: str) -> None:
        if name not in COLUMNS:
            raise KeyError(f"pairs have no column {name!r}: choose from {', '.join(COLUMNS)}.")
        self._pairs, self._name = pairs, name

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int | slice) -> "Any | Column":
        """A value for an integer, a column of fewer rows for a slice."""
        if isinstance(index, slice):
            return Column(self._pairs[index], self._name)
        return self._pairs[index][self._name]

    def __iter__(self) -> Iterator[Any]:
        return (row[self._name] for row in self._pairs)

    def __repr__(self) -> str:
        return f"Column({self._name!r} of {self._pairs!r})"


class Pairs(Sequence):
    """Rows of a source, made when they are asked for. Small to pickle: it holds the source and the row numbers.

    Args:
        source: makes the rows.
        indices: which of its rows, in this order.
        findings: what was left out when the source was opened.
    """

    def __init__(self, source: Source, indices: Sequence[int], findings: Findings = Findings()) -> None:
        self.findings = findings
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

    def __getitem__(self, index: int | slice | str) -> "dict | Pairs | Column":
        """A row for an integer (negative ones count from the end), a sequence for a slice, a column for its name."""
        if isinstance(index, str):
            return Column(self, index)
        if isinstance(index, slice):
            return Pairs(self._source, self._indices[index], self.findings)
        return self._source.row(self._indices[index])

    def __iter__(self) -> Iterator[dict]:
        return (self._source.row(index) for index in self._indices)

    def select(self, indices: Sequence[int]) -> "Pairs":
        """The rows at these positions, in this order."""
        return Pairs(self._source, [self._indices[index] for index in indices], self.findings)

    def __repr__(self) -> str:
        return f"Pairs({self._source!r}, {len(self)} rows)"
