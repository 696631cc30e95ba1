"""Pairs as arrays. Worker processes import this module, so it is kept free of torch, which takes seconds to import."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .pairs import Pairs

Result = TypeVar("Result")

CHUNK = 64
"""Rows that a process makes at once."""


def read_chunks(read: Callable[[Pairs], Result], rows: Pairs, processes: int, description: str) -> Iterator[Result]:
    """`read` of every `CHUNK` rows in order, with a progress bar, by as many processes as there is work for.

    Args:
        read: a function that can be sent to another process.
        rows: what `load_pairs` gives.
        processes: how many read, at most. More than one import the main script, which needs its `__main__` guard.
        description: of the bar.
    """
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    processes = min(processes, len(chunks))
    with tqdm(total=len(rows), desc=description, unit=" pairs") as progress:
        if processes == 1:
            yield from _counted(map(read, chunks), chunks, progress)
            return
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield from _counted(pool.map(read, chunks), chunks, progress)


def _counted(results: Iterable[Result], chunks: Sequence[Pairs], progress: tqdm) -> Iterator[Result]:
    for result, chunk in zip(results, chunks, strict=True):
        progress.update(len(chunk))
        yield result


def read_arrays(rows: Pairs) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Backs and fronts of all rows, both `N x size x size x 3` uint8, and their `N` group ids."""
    made = list(rows)
    backs, fronts = (np.stack([np.asarray(row[view]) for row in made]) for view in ("back", "front"))
    return backs, fronts, [row["group_id"] for row in made]


def read_small_backs(rows: Iterable[Mapping], side: int) -> np.ndarray:
    """Backs of all rows shrunk to `side` x `side` px by averaging, `N x side x side x 3` uint8."""
    return np.stack([np.asarray(row["back"].resize((side, side), Image.Resampling.BOX)) for row in rows])
