"""The drawing surface: anti-aliased parts, tones and lines in integer arithmetic, with a label for every sample.

Nothing here depends on the processor: polygons go through OpenCV's fixed-point rasteriser, everything else is integer
NumPy. The canvas has `OVERSAMPLING` samples per pixel and side; `picture` and `mask` average them.
"""

from functools import lru_cache

import cv2
import numpy as np

OVERSAMPLING = 2
SUBPIXEL_BITS = 4  # polygon corners are rounded to 1/16 sample
FINE_BITS = 9  # control points of curves to 1/512 sample
COARSE_SIZE = 160  # px; up to here two segments to a control point look round
SHADES = 64  # steps of light across a part

# Labels of a sample: bits that say which masks it belongs to.
PERSON, GARMENT, HEAD, FACE = 1, 2, 4, 8
SKIN_LABEL = PERSON
CLOTH_LABEL = PERSON | GARMENT
HEAD_LABEL = PERSON | HEAD
FACE_LABEL = PERSON | HEAD | FACE

# A label's bits spread over nibbles, so that one sum counts the samples of all four masks.
_NIBBLES = np.array([sum(((label >> bit) & 1) << (4 * bit) for bit in range(4)) for label in range(256)], np.uint16)
_LEVELS = (0, 64, 128, 191, 255, 0, 0, 0)
_COUNT_TO_MASK = np.array([[_LEVELS[(byte >> bit) & 7] for byte in range(256)] for bit in (0, 4)], np.uint8)


@lru_cache(maxsize=128)
def _spline_weights(count: int, steps: int) -> np.ndarray:
    """Weights in 1/32 of `count` control points in the `steps` samples of each (steps * count x count, int32)."""
    weights = np.zeros((steps * count, count), np.int32)
    for i in range(count):
        for step in range(steps):
            t = step * 4 // steps
            before, after = (4 - t) ** 2, t**2
            weights[steps * i + step, i - 1] += before
            weights[steps * i + step, i] += 32 - before - after
            weights[steps * i + step, (i + 1) % count] += after
    return weights


def smooth(points: np.ndarray, steps: int) -> np.ndarray:
    """Closed quadratic B-spline through the edge midpoints of `points`; a doubled point stays a corner.

    n x 2 in 1/512 sample to (steps * n) x 2 in 1/16 sample rounded down, both int32, `steps` 2 or 4 line segments for
    each point; all in integers, hence the same on every machine.
    """
    curve = _spline_weights(len(points), steps).dot(points)
    curve >>= FINE_BITS + 5 - SUBPIXEL_BITS
    return curve


@lru_cache(maxsize=64)
def _tone_table(percent: int) -> np.ndarray:
    """Every 8-bit value at `percent` of itself."""
    return np.array([min(255, value * percent // 100) for value in range(256)], np.uint8)


class Canvas:
    """`size` x `size` pixels, RGB, with a label canvas beside it. Corners are fixed-point samples (n x 2, int32)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.side = size * OVERSAMPLING
        self.curve_steps = 2 if size <= COARSE_SIZE else 4
        self.color = np.zeros((self.side, self.side, 3), np.uint8)
        self.label = np.zeros((self.side, self.side), np.uint8)

    def fixed(self, points: np.ndarray) -> np.ndarray:
        """Fractions of the side (n x 2) to fixed-point sample coordinates (n x 2, int32)."""
        scale = self.side << SUBPIXEL_BITS
        return np.rint(points * scale - (1 << (SUBPIXEL_BITS - 1))).astype(np.int32)

    def thickness(self, width: float) -> int:
        """A line width in fractions of the side as whole samples, at least one."""
        return max(1, int(width * self.side + 0.5))

    def box(self, corners: np.ndarray) -> tuple[int, int, int, int] | None:
        """Samples (x0, y0, x1, y1) that fixed-point `corners` may touch, or None if all lie outside."""
        x, y, width, height = cv2.boundingRect(corners)
        x0, y0 = max(0, (x >> SUBPIXEL_BITS) - 1), max(0, (y >> SUBPIXEL_BITS) - 1)
        x1 = min(self.side, ((x + width) >> SUBPIXEL_BITS) + 3)
        y1 = min(self.side, ((y + height) >> SUBPIXEL_BITS) + 3)
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def inside(self, corners: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """255 in the samples of `box` that lie in the polygon, else 0 (h x w, uint8)."""
        x0, y0, x1, y1 = box
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [corners - (x0 << SUBPIXEL_BITS, y0 << SUBPIXEL_BITS)], 255, cv2.LINE_8, SUBPIXEL_BITS)
        return mask

    def lay(self, box: tuple[int, int, int, int], mask: np.ndarray, color: np.ndarray) -> None:
        """Put `color` (h x w x 3 or 4, uint8) on the canvas where `mask` (h x w, uint8) is not 0."""
        x0, y0, x1, y1 = box
        if color.shape[2] == 4:
            color = cv2.cvtColor(color, cv2.COLOR_RGBA2RGB)
        cv2.copyTo(color, mask, self.color[y0:y1, x0:x1])

    def mark(self, corners: np.ndarray, label: int) -> None:
        """Give the samples of a polygon a label."""
        cv2.fillPoly(self.label, [corners], label, cv2.LINE_8, SUBPIXEL_BITS)

    def mark_line(self, corners: np.ndarray, label: int, width: float) -> None:
        """Give the samples of an open line a label."""
        cv2.polylines(self.label, [corners], False, label, self.thickness(width), cv2.LINE_8, SUBPIXEL_BITS)

    def flat(self, corners: np.ndarray, rgb: tuple[int, int, int], label: int | None = None) -> None:
        """A polygon in one colour."""
        cv2.fillPoly(self.color, [corners], rgb, cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            self.mark(corners, label)

    def line(self, corners: np.ndarray, rgb: tuple[int, int, int], width: float, closed: bool = False) -> None:
        """A line of `width` (fraction of the side)."""
        cv2.polylines(self.color, [corners], closed, rgb, self.thickness(width), cv2.LINE_AA, SUBPIXEL_BITS)

    def crease(self, corners: np.ndarray, percent: int) -> None:
        """A thin polygon in `percent` of the colour that the canvas has in its middle."""
        x, y, width, height = cv2.boundingRect(corners)
        last = self.side - 1
        column = min(last, max(0, (2 * x + width) >> (SUBPIXEL_BITS + 1)))
        row = min(last, max(0, (2 * y + height) >> (SUBPIXEL_BITS + 1)))
        rgb = [min(255, channel * percent // 100) for channel in self.color[row, column].tolist()]
        cv2.fillPoly(self.color, [corners], rgb, cv2.LINE_AA, SUBPIXEL_BITS)

    def tone(self, corners: np.ndarray, percent: int, on_person: bool = False) -> None:
        """Take a polygon to `percent` of the colours it has; `on_person` leaves the backdrop as it is."""
        box = self.box(corners)
        if box is None:
            return
        x0, y0, x1, y1 = box
        mask = self.inside(corners, box)
        if on_person:
            mask = cv2.min(mask, self.label[y0:y1, x0:x1])  # every label is above 0
        self.lay(box, mask, cv2.LUT(self.color[y0:y1, x0:x1], _tone_table(percent)))

    def picture(self) -> np.ndarray:
        """The finished picture (size x size x 3, uint8): the rounded mean of each block of samples."""
        rows = self.color[0::2].astype(np.uint16).reshape(self.size, -1)
        rows += self.color[1::2].reshape(self.size, -1)
        rows[:, :-3] += rows[:, 3:].copy()  # with the sample to the right; every second sum is wanted
        rows += 2
        rows >>= 2
        sums = rows.astype(np.uint8).reshape(self.size, self.side, 3)
        return cv2.resize(sums, (self.size, self.size), interpolation=cv2.INTER_NEAREST)

    def masks(self) -> dict[int, np.ndarray]:
        """For each label bit, 0 to 255 by the share of samples that carry it (size x size, uint8)."""
        samples = cv2.LUT(self.label, _NIBBLES)
        rows = samples[0::2] + samples[1::2]
        counts = rows[:, 0::2] + rows[:, 1::2]
        low, high = (counts & 255).astype(np.uint8), (counts >> 8).astype(np.uint8)
        even, odd = _COUNT_TO_MASK
        return {
            PERSON: cv2.LUT(low, even),
            GARMENT: cv2.LUT(low, odd),
            HEAD: cv2.LUT(high, even),
            FACE: cv2.LUT(high, odd),
        }
