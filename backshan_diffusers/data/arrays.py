"""Pairs as arrays. Worker processes import this module, so it is kept free of torch, which takes seconds to import."""

from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from .pairs import Pairs


def read_arrays(rows: Pairs) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Backs and fronts of all rows, both `N x size x size x 3` uint8, and their `N` group ids."""
    made = list(rows)
    backs, fronts = (np.stack([np.asarray(row[view]) for row in made]) for view in ("back", "front"))
    return backs, fronts, [row["group_id"] for row in made]


def read_small_backs(rows: Iterable[Mapping], side: int) -> np.ndarray:
    """Backs of all rows shrunk to `side` x `side` px by averaging, `N x side x side x 3` uint8."""
    return np.stack([np.asarray(row["back"].resize((side, side), Image.Resampling.BOX)) for row in rows])
