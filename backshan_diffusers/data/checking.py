"""One look at every pair: which of them can be used, and what is wrong with the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from .arrays import read_chunks
from .pairs import Findings, Pairs, Skipped, UnreadablePairError, refuse_too_many_more

Result = TypeVar("Result")


@dataclass(frozen=True)
class PairCheck:
    """What a look at every pair has shown.

    Args:
        usable: the pairs whose pictures can be read.
        findings: what was left out, now and when the source was opened.
    """

    usable: Pairs
    findings: Findings

    def __str__(self) -> str:
        """What to show a person."""
        return summary(len(self.usable), self.findings)


def summary(usable: int, found: Findings) -> str:
    """The counts in words, and one line for each pair that is left out."""
    counts = (
        f"{usable} pairs can be used; left out are {len(found.skipped)} that cannot and"
        f" {len(found.repeated)} that repeat another; {found.joined_groups} groups were joined to one that has the"
        " same picture."
    )
    repeats = (Skipped(item_id, "it repeats an earlier pair") for item_id in found.repeated)
    return "\n".join([counts, *map(str, found.skipped), *map(str, repeats)])


def check_pairs(rows: Pairs, processes: int = 1) -> PairCheck:
    """Read the pictures of every pair, with a progress bar.

    Args:
        rows: what `load_pairs` gives.
        processes: how many read, at most. More than one import the main script, which needs its `__main__` guard.

    Raises:
        PairsError: if more than a few pairs cannot be read.
    """
    usable, skipped, looked_at = [], [], 0
    for _, good, bad in read_usable(rows, processes):
        usable += [looked_at + position for position in good]
        looked_at += len(good) + len(bad)
        skipped += bad
        refuse_too_many_more(skipped, rows)
    findings = replace(rows.findings, skipped=(*rows.findings.skipped, *skipped))
    return PairCheck(rows.select(usable) if skipped else rows, findings)


def read_usable(
    rows: Pairs, processes: int, read: Callable[[Sequence[dict]], Result] | None = None
) -> Iterator[tuple[Result | None, list[int], list[Skipped]]]:
    """Chunk by chunk what `read` makes of the rows that can be used, their places in the chunk, and the other rows.

    Args:
        rows: what `load_pairs` gives.
        processes: how many read, at most.
        read: what is made, where they are read, of some rows; can be sent to another process. None: nothing is.
    """
    return read_chunks(partial(_read_usable, read), rows, processes, "pairs")


def _read_usable(read: Callable | None, rows: Pairs) -> tuple[Result | None, list[int], list[Skipped]]:
    """What `read` makes of the rows that can be used, their positions, and the other rows."""
    made, good, bad = [], [], []
    for position in range(len(rows)):
        try:
            made.append(rows[position])
        except UnreadablePairError as error:
            bad.append(Skipped(error.item_id, error.reason))
        else:
            good.append(position)
    return read(made) if read and made else None, good, bad
