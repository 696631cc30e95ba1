"""The order in which an epoch shows its items: at random, or with similar outfits side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

THUMBNAIL_SIDE = 8
"""Side in px of the backs that are compared by their look: colours and their places, no details."""


class RandomOrder:
    """Every epoch a new order of `total` items."""

    def __init__(self, total: int):
        self.total = total

    def __call__(self, seed: int) -> np.ndarray:
        """The order of the epoch with that seed, `total` int64."""
        return torch.randperm(self.total, generator=torch.Generator().manual_seed(seed)).numpy()


class LikenessOrder:
    """Every epoch a new order in which runs of `group_size` items are alike: hard negatives of each other.

    The items are halved again and again along random directions, as in a random projection tree (Dasgupta and Freund
    2008), until `group_size` are left; then the groups are shuffled.

    Args:
        descriptors: `N x F`; items are alike where these are near in L2.
        group_size: items of a run, at least 2; a batch has to hold whole runs.
    """

    def __init__(self, descriptors: np.ndarray, group_size: int):
        self.descriptors, self.group_size, self.total = descriptors.astype(np.float32), group_size, len(descriptors)
        self._known: tuple[int, np.ndarray] | None = None

    def __call__(self, seed: int) -> np.ndarray:
        """The order of the epoch with that seed, `N` int64."""
        if self._known is None or self._known[0] != seed:
            self._known = seed, self._order(np.random.default_rng(seed))
        return self._known[1]

    def _order(self, random: np.random.Generator) -> np.ndarray:
        pending, groups = [random.permutation(len(self.descriptors))], []
        while pending:
            items = pending.pop()
            if len(items) <= self.group_size:
                groups.append(items)
                continue
            direction = random.standard_normal(self.descriptors.shape[1], dtype=np.float32)
            items = items[np.argsort(self.descriptors[items] @ direction, kind="stable")]
            half = -(-len(items) // (2 * self.group_size)) * self.group_size  # whole groups on the first side
            pending += [items[:half], items[half:]]
        whole = [group for group in groups if len(group) == self.group_size]
        rest = [group for group in groups if len(group) < self.group_size]  # at most one, and it comes last
        return np.concatenate([whole[place] for place in random.permutation(len(whole))] + rest)


def describe_by_attributes(attributes: Sequence[dict]) -> np.ndarray:
    """`N x F` descriptors of items by their labels: texts and switches as one column for each value, numbers scaled
    to unit variance. Rare values weigh more, because two items that share one are more alike than two that share a
    common one.

    Args:
        attributes: the `attributes` of `N` rows; a label that a row lacks counts as a value of its own.
    """
    names = sorted({name for row in attributes for name in row})
    columns = []
    for name in names:
        values = [row.get(name) for row in attributes]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            columns.append(np.array(values, dtype=np.float32)[:, None])
        else:
            texts = np.array([repr(value) for value in values])
            columns.append((texts[:, None] == np.unique(texts)[None, :]).astype(np.float32))
    table = np.concatenate(columns, axis=1)
    return table / np.maximum(table.std(axis=0), 1e-6)


def describe_by_look(pictures: np.ndarray) -> np.ndarray:
    """`N x 192` descriptors of `N x S x S x 3` uint8 pictures: thumbnails in the Lab colours of OpenCV."""
    small = [cv2.resize(picture, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA) for picture in pictures]
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).reshape(-1) for picture in small]).astype(np.float32)
