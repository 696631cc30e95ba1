"""Metrics of one generated front against the true one: pure functions of pictures and masks.

A picture is `H x W x 3` uint8 (sRGB), a mask `H x W` uint8 from 0 (outside) to 255 (inside). Means over a mask are
weighted by it, so that an anti-aliased pixel counts in part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2gray, rgb2lab
from skimage.filters import sobel
from skimage.metrics import structural_similarity

FLAT = 1e-6
"""Strength of edges, in [0, 1], of which a picture of one colour has less: it has what rounding leaves."""

DIFFERENCE_THRESHOLD = 0.1
"""Two fronts differ at a pixel if the mean absolute difference of its channels, in [0, 1], is more than this."""

VISIBLE_SHARE = 0.001
"""Share of the picture's pixels at which two fronts must differ for their difference to count as visible."""

PRESENCE_REACH = 64
"""A thing may be one in so many parts of the picture's width aside: a back view hardly shows how far a body is turned,
and so not where its middle line runs in front."""


def l1(generated: np.ndarray, front: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference over the mask, in [0, 1] (1 is black against white); lower is better.

    Raises:
        ValueError: if the shapes or types do not fit, or the mask is empty.
    """
    weights = _weights(generated, front, mask)
    return float((_channel_mean_difference(generated, front) * weights).sum() / weights.sum())


def ssim(generated: np.ndarray, front: np.ndarray, mask: np.ndarray) -> float:
    """Structural similarity over the mask, at most 1 (equal); higher is better.

    The map of Wang et al. 2004 with their Gaussian window (sigma 1.5 px, 11 px wide, population covariance), computed
    on the whole picture for each channel and averaged over channels and mask. A window at the mask's edge sees up to
    5 px of what lies outside it.

    Raises:
        ValueError: if the shapes or types do not fit, the mask is empty, or a side is shorter than 11 px.
    """
    weights = _weights(generated, front, mask)
    _, similarity = structural_similarity(
        generated,
        front,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float((similarity.mean(axis=2) * weights).sum() / weights.sum())


def colour_difference(generated: np.ndarray, front: np.ndarray, mask: np.ndarray) -> float:
    """Mean CIEDE2000 difference over the mask, in units of Delta E (about 1 is just noticeable); lower is better.

    Pixel against pixel (Sharma et al. 2005), sRGB read under D65.

    Raises:
        ValueError: if the shapes or types do not fit, or the mask is empty.
    """
    weights = _weights(generated, front, mask)
    inside = weights > 0
    differences = deltaE_ciede2000(rgb2lab(front[inside]), rgb2lab(generated[inside]))
    return float((differences * weights[inside]).sum() / weights.sum())


def edge_error(generated: np.ndarray, front: np.ndarray, mask: np.ndarray) -> float:
    """How far the strength of the edges over the mask is from the true front's, as a share of that; lower is better.

    A blur lacks edges and has up to 1; noise has too many, and may have more. Where an edge is, is not asked, so that
    0 proves nothing alone: the other metrics ask that, and in turn reward a blur where it is unknown what comes. The
    strength is the mean Sobel magnitude of the luminance in [0, 1].

    Raises:
        ValueError: if the shapes or types do not fit, the mask is empty, or the true front is of one colour.
    """
    weights = _weights(generated, front, mask)
    made, true = ((sobel(rgb2gray(each)) * weights).sum() / weights.sum() for each in (generated, front))
    if true < FLAT:
        raise ValueError("the true front has no edges over the mask: leave this item out.")
    return float(abs(made / true - 1))


def side_correct(generated: np.ndarray, front: np.ndarray, other_side: np.ndarray) -> bool | None:
    """Whether something that is on one side of the person came out on the correct side.

    Compares L1 to the true front with L1 to `other_side`, over the pixels where these two differ.

    Args:
        generated: `H x W x 3` uint8.
        front: the true front.
        other_side: the true front with that one thing moved to the person's other side, and all else (pose, light,
            background) as it was. The flipped front will not do: it differs in pose above all, so a picture with the
            bag on the wrong arm would still count as correct.

    Returns:
        `True` or `False` (a tie is `False`), or `None` if the two fronts differ in less than 0.1 % of the pixels.

    Raises:
        ValueError: if the shapes or types do not fit.
    """
    differs = _visible_difference(generated, front, other_side)
    if differs is None:
        return None
    to_front, to_other = (_channel_mean_difference(generated, each)[differs].sum() for each in (front, other_side))
    return bool(to_front < to_other)


def presence(generated: np.ndarray, front: np.ndarray, without: np.ndarray) -> float | None:
    """How strongly one thing that only the front shows is there: 0 as if it were left out, 1 as in the true front.

    The generated front is fitted, by least squares over the smallest box around the pixels where the other two differ,
    as `a * without + b * (front - without) + c`, with a `c` for each channel; the answer is `b`. So it asks for the
    thing's own pattern of light and dark, whatever the colours around it, and is near 0 on the mean for a picture
    that has nothing to do with it. What came out up to 1/64 of the width to the left or right is found too: of the
    positions, that with the closest fit counts.

    Args:
        generated: `H x W x 3` uint8.
        front: the true front.
        without: the true front without that one thing, and all else as it was.

    Returns:
        The strength, which nothing bounds, or `None` if the two fronts differ in less than 0.1 % of the pixels.

    Raises:
        ValueError: if the shapes or types do not fit.
    """
    differs = _visible_difference(generated, front, without)
    if differs is None:
        return None
    reach = front.shape[1] // PRESENCE_REACH
    rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, max(columns[0] - reach, 0) : columns[-1] + 1 + reach]
    target = generated[box].astype(np.float64).ravel()
    rest = [without[box].astype(np.float64).ravel(), *np.tile(np.eye(3), (target.size // 3, 1)).T]
    thing = front.astype(np.float64) - without
    fits = []
    for shift in range(-reach, reach + 1):
        terms = np.stack([np.roll(thing, shift, axis=1)[box].ravel(), *rest], axis=1)
        weights = np.linalg.lstsq(terms, target, rcond=None)[0]
        fits.append((np.square(target - terms @ weights).sum(), float(weights[0])))
    return min(fits)[1]


@dataclass(frozen=True)
class Metric:
    """One column of the quality tables.

    Args:
        label: heading of the column, with the unit if there is one.
        function: of generated picture, true front and mask, as [`l1`].
        mask: the column of a row that holds the mask.
        lower_is_better: the direction.
        digits: decimals in a table.
    """

    label: str
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    mask: str
    lower_is_better: bool
    digits: int

    def of(self, generated: np.ndarray, row: Mapping) -> float:
        """The value for one row of `load_pairs`."""
        return self.function(generated, np.asarray(row["front"]), np.asarray(row[self.mask]))

    @property
    def sign(self) -> int:
        """-1 if lower is better, else 1: times a difference, it is positive where the first is better."""
        return -1 if self.lower_is_better else 1


METRICS = {
    "person_l1": Metric("person L1", l1, "front_person", True, 4),
    "person_ssim": Metric("person SSIM", ssim, "front_person", False, 3),
    "garment_colour_difference": Metric(
        "garment colour difference in Delta E", colour_difference, "front_garments", True, 2
    ),
    "head_l1": Metric("head L1", l1, "front_head", True, 4),
    "person_edge_error": Metric("person edge error", edge_error, "front_person", True, 3),
}
"""What every item and system is measured with, by the name under which values are saved."""


def _visible_difference(generated: np.ndarray, front: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Where `front` and `other` differ, `H x W` bool; `None` if that is in too few pixels to be seen.

    Raises:
        ValueError: if the shapes or types of the three do not fit.
    """
    _check_pictures(generated, front)
    _check_pictures(other, front)
    differs = _channel_mean_difference(front, other) > DIFFERENCE_THRESHOLD
    return None if differs.mean() < VISIBLE_SHARE else differs


def _channel_mean_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`H x W` float64 in [0, 1]."""
    return np.abs(one.astype(np.int16) - other).mean(axis=2) / 255


def _weights(generated: np.ndarray, front: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask as `H x W` float64 in [0, 1], once everything is known to fit."""
    _check_pictures(generated, front)
    if mask.dtype != np.uint8 or mask.shape != front.shape[:2]:
        raise ValueError(f"the mask is {mask.dtype} {mask.shape}: give uint8 of {front.shape[:2]}, as the pictures.")
    if not mask.any():
        raise ValueError("the mask is empty: a mean over it is not defined, so leave this item out.")
    return mask / 255


def _check_pictures(one: np.ndarray, front: np.ndarray) -> None:
    for picture in (one, front):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture is {picture.dtype} {picture.shape}: give uint8 of H x W x 3.")
    if one.shape != front.shape:
        raise ValueError(f"pictures of {one.shape} and {front.shape} cannot be compared: make them of one size.")
