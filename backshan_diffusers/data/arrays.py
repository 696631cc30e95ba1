"""Pairs as arrays. Worker processes import this module, so it is kept free of torch, which takes seconds to import."""

import numpy as np

from . import load_pairs


def read_arrays(chunk: tuple[str, str, int, int, int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Some rows of a source.

    Args:
        chunk: source, split, size (px) and count as in `load_pairs`, then the first row and the one after the last.

    Returns:
        Backs and fronts, both `N x size x size x 3` uint8, and the `N` group ids.
    """
    source, split, size, count, start, stop = chunk
    rows = list(load_pairs(source, split=split, size=size, count=count)[start:stop])
    backs, fronts = (np.stack([np.asarray(row[view]) for row in rows]) for view in ("back", "front"))
    return backs, fronts, [row["group_id"] for row in rows]
