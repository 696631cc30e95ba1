"""Pairs of back and front pictures: `load_pairs` is the one door for every source."""

import os
from pathlib import Path

from .checking import PairCheck, check_pairs
from .folder import open_folder
from .lpc import open_lpc
from .pairs import COLUMNS, SPLITS, Findings, Pairs, PairsError
from .valid import open_valid
from .wardrobe import Wardrobe

DRAWN = {"wardrobe": Wardrobe}
STORED = {"folder": open_folder, "lpc": open_lpc, "valid": open_valid}
SOURCES = (*DRAWN, *STORED)

__all__ = ["COLUMNS", "SOURCES", "PairCheck", "Pairs", "PairsError", "check_pairs", "load_pairs"]


def load_pairs(
    source: str, *, split: str, size: int, count: int | None = None, path: str | os.PathLike | None = None
) -> Pairs:
    """Pairs of a split, `size` x `size` px, as a lazy sequence of dicts with the keys `COLUMNS`.

    Args:
        source: one of `SOURCES`.
        split: `train`, `validation` or `test`.
        size: side of the pictures in px.
        count: how many pairs, from the first; by default all of them.
        path: where the pairs lie, for every source but `wardrobe`.

    Raises:
        ValueError: for an unknown source or split, a size the source cannot make, or a count it does not have; as
            `PairsError` if what lies at the path cannot be used.
    """
    if source not in SOURCES:
        raise ValueError(f"there is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    if split not in SPLITS:
        raise PairsError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if source in DRAWN:
        if path is not None:
            raise ValueError(f"{source} is drawn and lies nowhere: leave out the path {str(path)!r}.")
        reader, findings = DRAWN[source](split, size), Findings()
    else:
        reader = STORED[source](_existing(source, path), split, size)
        findings = reader.findings
    if count is None:
        count = reader.capacity
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= reader.capacity:
        raise ValueError(f"count must be a whole number from 1 to {reader.capacity}, not {count!r}.")
    return Pairs(reader, range(count), findings)


def _existing(source: str, path: str | os.PathLike | None) -> Path:
    if path is None:
        raise PairsError(f"{source} needs a path: give the folder where the pairs lie.")
    path = Path(path)
    if not path.is_dir() and not (path.is_file() and path.suffix == ".parquet"):
        raise PairsError(f"{path} is no folder and no parquet file: give the folder where the pairs lie.")
    return path
