"""The edges of pictures, as they enter the ControlNet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator

from ...conditioning import canny_edges
from .pairs import PairArrays
from .storage import cache_shards, key_of


class Edges:
    """Edges of `N` pictures that stay on disk until they are read, eight pixels in a byte.

    Args:
        shards: of `n x S x ceil(S / 8)` uint8 each; all but the last are equally long.
        side: `S`, that of the pictures in px.
    """

    def __init__(self, shards: list[torch.Tensor], side: int):
        self._shards, self._side = shards, side

    def __getitem__(self, index: int) -> np.ndarray:
        """`S x S` uint8, 0 or 255."""
        shard, place = divmod(index, len(self._shards[0]))
        return 255 * np.unpackbits(self._shards[shard][place].numpy(), axis=-1, count=self._side)


def cache_edges(
    pairs: PairArrays,
    thresholds: tuple[float, float],
    folder: Path,
    accelerator: Accelerator,
    view: str,
    flipped: bool,
) -> Edges:
    """Canny edges of every front, or back, computed once for these pairs, these thresholds and this OpenCV.

    They are those of pictures that nothing but a flip changes: where an augmentation moves or recolours pictures,
    edges have to be found in each step.

    Args:
        pairs: `N` of them.
        thresholds: the lower and the upper one of [`~backshan_diffusers.conditioning.canny_edges`].
        folder: where caches live.
        accelerator: knows the processes; all of them call this function.
        view: `fronts` or `backs`.
        flipped: whether the pictures are flipped left-right before edges are looked for; those of a flipped picture
            are not exactly the flipped edges.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    # a pixel is an edge or none, so what another OpenCV rounds otherwise is no small difference
    key = key_of("edges-1", pairs.key, view, flipped, *thresholds, cv2.__version__)

    def compute(pictures: np.ndarray) -> torch.Tensor:
        edges = [canny_edges(each[:, ::-1] if flipped else each, *thresholds) for each in pictures]
        return torch.from_numpy(np.stack([np.packbits(each != 0, axis=-1) for each in edges]))

    pictures = getattr(pairs, view)
    shards = cache_shards(pictures, compute, folder, accelerator, key, "edges", f"edges of {view}")
    return Edges(shards, pictures.shape[2])
