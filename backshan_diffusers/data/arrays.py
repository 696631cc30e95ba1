"""Pairs as arrays. Worker processes import this module, so it is kept free of torch, which takes seconds to import."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .pairs import VIEWS, Pairs, PairsError

Result = TypeVar("Result")

CHUNK = 64
"""Rows that a process makes at once."""

LABELS = ("item_id", "attributes")
"""Columns of a row that are neither pictures nor its group."""


def read_chunks(read: Callable[[Pairs], Result], rows: Pairs, processes: int, description: str) -> Iterator[Result]:
    """`read` of every `CHUNK` rows in order, with a progress bar, by as many processes as there is work for.

    Args:
        read: a function that can be sent to another process.
        rows: what `load_pairs` gives.
        processes: how many read, at most. More than one import the main script, which needs its `__main__` guard.
        description: of the bar.
    """
    places = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
    processes = min(processes, len(places))
    with tqdm(total=len(rows), desc=description, unit=" pairs") as progress:
        if processes <= 1:  # none where there are no rows
            yield from _counted((read(rows[place]) for place in places), len(rows), progress)
            return
        with ProcessPoolExecutor(processes, get_context("spawn"), _Reader.begin, (read, rows)) as pool:
            yield from _counted(pool.map(_Reader.go_on, places), len(rows), progress)


def _counted(results: Iterable[Result], total: int, progress: tqdm) -> Iterator[Result]:
    for result in results:
        progress.update(min(CHUNK, total - progress.n))
        yield result


class _Reader:
    """What a worker process has been given once: rows of a large source take long to send with every chunk."""

    @classmethod
    def begin(cls, read: Callable[[Pairs], Result], rows: Pairs) -> None:
        cls.read, cls.rows = staticmethod(read), rows

    @classmethod
    def go_on(cls, place: slice) -> Result:
        return cls.read(cls.rows[place])


def read_arrays(rows: Iterable[Mapping], masks: Sequence[str] = ()) -> tuple:
    """Backs and fronts of all rows, both `N x size x size x 3` uint8, their `N` group ids, and their `N` labels, each
    `item_id` and `attributes`; then for each of `masks` the pixels that it touches, eight of them in a byte:
    `N x size x ceil(size / 8)` uint8.

    Raises:
        PairsError: if a row lacks one of the masks.
    """
    made = list(rows)
    backs, fronts = (np.stack([np.asarray(row[view]) for row in made]) for view in VIEWS)
    touched = [_packed([_mask(row, name) for row in made]) for name in masks]
    labels = [{name: row[name] for name in LABELS} for row in made]
    return backs, fronts, [row["group_id"] for row in made], labels, *touched


def _packed(masks: list[np.ndarray]) -> np.ndarray:
    return np.packbits(np.stack(masks) > 0, axis=-1)


def _mask(row: Mapping, name: str) -> np.ndarray:
    if row[name] is None:
        raise PairsError(f"the pair {row['item_id']} has no {name} mask: choose a source that has one, or go without.")
    return np.asarray(row[name])


def read_small_backs(rows: Iterable[Mapping], side: int) -> np.ndarray:
    """Backs of all rows shrunk to `side` x `side` px by averaging, `N x side x side x 3` uint8."""
    return np.stack([np.asarray(row["back"].resize((side, side), Image.Resampling.BOX)) for row in rows])
