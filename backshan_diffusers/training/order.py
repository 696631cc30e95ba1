"""The order in which an epoch shows its items: at random, or with similar outfits side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

LOT = 2048
"""Items among which neighbours are sought: few enough to be quick, and another company in every epoch."""

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

    The items fall at random into lots of about `LOT`; within a lot an item and those nearest to it make a group, then
    the next of what is left, and so on; then the groups are shuffled. An epoch leaves out what makes no whole group:
    later groups would straddle two batches.

    Args:
        descriptors: `N x F`; items are alike where these are near in L2.
        group_size: items of a run, at least 2; a batch has to hold whole runs.
    """

    def __init__(self, descriptors: np.ndarray, group_size: int):
        self.descriptors, self.group_size = descriptors.astype(np.float32), group_size
        self.total = len(descriptors) // group_size * group_size
        self._known: tuple[int, np.ndarray] | None = None

    def __call__(self, seed: int) -> np.ndarray:
        """The order of the epoch with that seed, `total` int64."""
        if self._known is None or self._known[0] != seed:
            self._known = seed, self._order(np.random.default_rng(seed))
        return self._known[1]

    def _order(self, random: np.random.Generator) -> np.ndarray:
        items, lot = random.permutation(len(self.descriptors)), -(-LOT // self.group_size) * self.group_size
        groups = [group for start in range(0, len(items), lot) for group in self._groups(items[start : start + lot])]
        return np.concatenate([groups[place] for place in random.permutation(len(groups))])

    def _groups(self, items: np.ndarray) -> list[np.ndarray]:
        """Cut a lot into groups; what is left over makes none."""
        groups = []
        while len(items) >= self.group_size:
            distances = np.square(self.descriptors[items] - self.descriptors[items[0]]).sum(axis=1)
            nearest = np.argsort(distances, kind="stable")[: self.group_size]  # itself, also where another is equal
            groups.append(items[nearest])
            items = np.delete(items, nearest)
        return groups


def describe_by_attributes(attributes: Sequence[dict]) -> np.ndarray:
    """`N x F` descriptors of items by their labels: one column for each text or switch that occurs, so that distances
    count the labels that differ, and numbers scaled to unit variance.

    Args:
        attributes: the `attributes` of `N` rows; a label that a row lacks counts as a value of its own.
    """
    columns = []
    for name in sorted({name for row in attributes for name in row}):
        values = [row.get(name) for row in attributes]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            numbers = np.array(values, dtype=np.float32)[:, None]
            columns.append((numbers - numbers.mean()) / max(numbers.std(), 1e-6))
        else:
            texts = np.array([repr(value) for value in values])
            columns.append((texts[:, None] == np.unique(texts)[None, :]).astype(np.float32))
    return np.concatenate(columns, axis=1)


def describe_by_look(pictures: np.ndarray) -> np.ndarray:
    """`N x 192` descriptors of `N x S x S x 3` uint8 pictures: thumbnails in the Lab colours of OpenCV."""
    small = [
        cv2.resize(picture, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA) for picture in pictures
    ]
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).reshape(-1) for picture in small]).astype(np.float32)
