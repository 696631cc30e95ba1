"""The systems that are compared, in one form: rows in, one front for each out. Three of them are baselines."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import PIL.Image
import torch

from ..data.arrays import read_chunks, read_small_backs
from ..data.pairs import Pairs
from ..pictures import WHITE
from ..pipelines import BackToFrontPipeline

THUMBNAIL_SIDE = 32
"""Side in px of the pictures whose distance decides which training back is nearest."""


class GeneratedFront:
    """A pipeline's fronts, each from noise that depends on its item alone.

    Args:
        pipeline: generates the fronts.
        seed: changes the noise of every item.
        num_inference_steps: denoising steps; by default what the pipeline records.
        blank: give the pipeline a white picture in place of each back, as training does when it drops the condition.
            What it then makes is what it would guess about anybody.
        prompt_of: the prompt of a row. None: what the pipeline records, for all.
    """

    def __init__(
        self,
        pipeline: BackToFrontPipeline,
        seed: int,
        num_inference_steps: int | None = None,
        blank: bool = False,
        prompt_of: Callable[[dict], str] | None = None,
    ):
        self.pipeline = pipeline
        self.seed = seed
        self.num_inference_steps = num_inference_steps
        self.blank = blank
        self.prompt_of = prompt_of

    def __call__(self, rows: Sequence[dict]) -> list[np.ndarray]:
        backs = [PIL.Image.new("RGB", row["back"].size, WHITE) if self.blank else row["back"] for row in rows]
        noise = [torch.Generator().manual_seed(item_seed(self.seed, row["item_id"])) for row in rows]
        prompts = None if self.prompt_of is None else [*map(self.prompt_of, rows)]
        fronts = self.pipeline(
            backs, prompts, generator=noise, num_inference_steps=self.num_inference_steps, restore_size=True
        ).images
        return [np.asarray(front) for front in fronts]


class MirroredBack:
    """The back flipped left-right: the outline is right, and so is every fabric that goes around the body."""

    def __call__(self, rows: Sequence[dict]) -> list[np.ndarray]:
        return [np.asarray(row["back"])[:, ::-1] for row in rows]


class NearestTrainingFront:
    """The front of the training pair whose back is nearest: what a model that only remembers could give.

    Args:
        training_rows: of the size of the rows that follow. Their backs are read once, now; 3 KiB of each are kept.
        processes: how many read them, at most. More than one import the main script: it needs its `__main__` guard.
    """

    def __init__(self, training_rows: Pairs, processes: int = 1):
        self.training_rows = training_rows
        read = partial(read_small_backs, side=THUMBNAIL_SIDE)
        small = np.concatenate(list(read_chunks(read, training_rows, processes, "training backs")))
        self.thumbnails = small.reshape(len(training_rows), -1)

    def __call__(self, rows: Sequence[dict]) -> list[np.ndarray]:
        indices = nearest(thumbnails(rows), self.thumbnails)
        return [np.asarray(self.training_rows[int(index)]["front"]) for index in indices]


def item_seed(seed: int, item_id: str) -> int:
    """The seed of one item's noise: the same in whatever batch, order or selection the item comes."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item_id}".encode()).digest()[:7], "big")


def thumbnails(rows: Sequence[dict]) -> np.ndarray:
    """The backs of rows shrunk to 32 x 32 px by averaging, `N x 3072` uint8."""
    return read_small_backs(rows, THUMBNAIL_SIDE).reshape(len(rows), -1)


def nearest(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """For each of `Q x D` uint8 the index, `Q` int64, of the nearest of `K x D` uint8 by L2; the first of equals.

    |q - k|^2 = |q|^2 - 2 q.k + |k|^2, of which |q|^2 decides nothing. All terms are whole numbers that float64 holds
    exactly, so the answer is the same on every machine.
    """
    best_index, best = np.zeros(len(queries), np.int64), np.full(len(queries), np.inf)
    queries = queries.astype(np.float64)
    for start in range(0, len(keys), 1024):
        chunk = keys[start : start + 1024].astype(np.float64)
        scores = (chunk**2).sum(axis=1) - 2 * queries @ chunk.T
        index = scores.argmin(axis=1)
        score = scores[np.arange(len(queries)), index]
        better = score < best
        best_index[better], best[better] = start + index[better], score[better]
    return best_index
