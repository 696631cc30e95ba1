"""Intervals that count groups, because rows with the same outfit are not independent of each other."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of (1 + LEVEL) / 2
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over items and its 95 % interval.

    Args:
        mean: over all items.
        low, high: ends of the interval.
        items: how many items the mean runs over.
        groups: how many independent groups they form.
    """

    mean: float
    low: float
    high: float
    items: int
    groups: int


def mean_intervals(values: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> list[Interval]:
    """The mean of each column with its percentile bootstrap interval (Efron 1979), resampling whole groups.

    A resample draws as many groups as there are, with replacement, and takes the mean over all their items (the
    "cluster bootstrap", Davison and Hinkley 1997, section 3.8). All columns see the same resamples.

    Args:
        values: `N x K`, one row for each item and one column for each quantity.
        groups: the group of each item.
        seed: seeds the resamples.

    Raises:
        ValueError: if there is not one group for each item, fewer than two groups, or a value that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(groups):
        raise ValueError(
            f"values of {values.shape} for {len(groups)} groups: give one row and one group for each item."
        )
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite: leave out the items that could not be measured.")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise ValueError(f"an interval needs items of at least 2 groups, not of {len(number)}.")
    group_of_item = np.array([number[group] for group in groups])
    items_of_group = np.bincount(group_of_item)
    sums = np.zeros((len(number), values.shape[1]))
    np.add.at(sums, group_of_item, values)

    draws = np.random.default_rng(seed).integers(len(number), size=(RESAMPLES, len(number)))
    offsets = np.arange(RESAMPLES)[:, None] * len(number)
    times_drawn = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)
    means = (times_drawn @ sums) / (times_drawn @ items_of_group)[:, None]
    tail = (1 - LEVEL) / 2
    lows, highs = np.quantile(means, [tail, 1 - tail], axis=0)
    return [
        Interval(float(mean), float(low), float(high), len(values), len(number))
        for mean, low, high in zip(values.mean(axis=0), lows, highs, strict=True)
    ]


def share_interval(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The mean of values in [0, 1] with its Wilson score interval (Wilson 1927).

    Used for shares, because a bootstrap of a share of 0 or 1 has no width. Items of one group are taken to agree
    always, so the number of trials is Kish's effective sample size (sum m)^2 / sum m^2 for groups of m items; where
    all groups are of one size that is their number.

    Args:
        values: one for each item, such as 0 for a miss, 0.5 for a tie and 1 for a hit.
        groups: the group of each item.

    Raises:
        ValueError: if there are no values, not one group for each, or values outside [0, 1].
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(groups) or len(values) == 0:
        raise ValueError(
            f"values of {values.shape} for {len(groups)} groups: give one value and one group for each item."
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a share's values lie in [0, 1]: give hits as 1 and misses as 0.")
    sizes = np.array(list(Counter(groups).values()))
    share, trials = values.mean(), sizes.sum() ** 2 / (sizes**2).sum()
    squared = NORMAL_QUANTILE**2
    centre = (share + squared / (2 * trials)) / (1 + squared / trials)
    reach = (
        NORMAL_QUANTILE * np.sqrt(share * (1 - share) / trials + squared / (4 * trials**2)) / (1 + squared / trials)
    )
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return Interval(float(share), float(low), float(high), len(values), len(sizes))
