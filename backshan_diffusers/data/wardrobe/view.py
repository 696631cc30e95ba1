"""One picture of a person from one side: person coordinates go in, samples of the canvas come out."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import CLOTH_LABEL, FINE_BITS, SHADES, SUBPIXEL_BITS, Canvas, smooth
from .fabric import RGB, UNITS, Cloth, scaled, shade_curve
from .figure import SOLE, Figure, Point
from .outfit import Outfit, Person, Scene

ROUND_LIMB, ROUND_TRUNK = 9, 8  # how far a part's normal turns towards its edges, in tenths
_RAMP = np.arange(4096, dtype=np.int32)  # longer than any canvas is wide
SHADOW_PERCENT = 76  # of the light that cast shadows leave
OUTLINE = 0.0032  # of the picture's side


@dataclass
class View:
    """The state that all drawing functions share. `side` is +1 from the front and -1 from the back; `left_out` says
    which of "closure", "collar", "pockets" and "face" a front is drawn without."""

    canvas: Canvas
    side: int
    outfit: Outfit
    person: Person
    scene: Scene
    figure: Figure
    left_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        side, height = self.canvas.side, self.person.height
        self._scale = height * side  # samples per figure height
        # What is rounded down to 1/16 sample after `smooth` gets half of that here.
        half = 1 << (FINE_BITS - SUBPIXEL_BITS - 1)
        self._places = {
            SUBPIXEL_BITS: self._placement(1 << SUBPIXEL_BITS),
            FINE_BITS: self._placement(1 << FINE_BITS, half),
        }

    def _placement(self, unit: int, rounding: int = 0) -> tuple[float, float, float, float, float]:
        """x0, across, slant, y0, down: (x, y) lies at (x0 + across * x - slant * y, y0 + down * y) in 1/unit."""
        side, height, lean = self.canvas.side, self.person.height, self.person.lean
        across = self.side * self._scale * unit
        x0 = (0.5 * side - 0.5) * unit + across * lean * SOLE + rounding
        y0 = (side * (0.5 + (0.485 - SOLE) * height) - 0.5) * unit + rounding
        return x0, across, across * lean, y0, self._scale * unit

    @property
    def is_front(self) -> bool:
        return self.side > 0

    def center(self, y: float) -> float:
        """Where the middle line of the body runs in this view: a body turned a little shows it off the middle."""
        return self.person.turn * 0.05 * self.side * (0.5 if y < 0.2 else 1.0)

    def place(self, points: list[Point], bits: int = SUBPIXEL_BITS) -> np.ndarray:
        """Person coordinates to samples in fixed point with `bits` fractional bits (n x 2, int32)."""
        x0, across, slant, y0, down = self._places[bits]
        return np.array([(int(x0 + across * x - slant * y), int(y0 + down * y)) for x, y in points], np.int32)

    def corners(self, points: list[Point], curved: bool = True) -> np.ndarray:
        """Person coordinates to fixed-point samples; `curved` rounds all corners that are not doubled."""
        return smooth(self.place(points, FINE_BITS), self.canvas.curve_steps) if curved else self.place(points)

    def part(
        self,
        points: list[Point],
        cloth: Cloth,
        label: int = CLOTH_LABEL,
        *,
        roundness: int = ROUND_LIMB,
        axis: tuple[Point, Point] | None = None,
        falloff: int = 8,
        cast: float = 0.0,
        seam: bool = False,
        open_start: bool = False,
    ) -> None:
        """A lit and patterned part.

        `roundness`: see `shade_curve`. `axis`: the line that the cloth hangs along (default: the body's middle line).
        `falloff`: steps of shade from its top to its bottom. `cast`: how far its shadow falls on what lies below, in
        figure heights. `seam`: this is the half of a pair that meets at the middle line, so that the light runs on.
        `open_start`: no outline around the cap of a limb, which is sewn to the trunk.
        """
        corners = self.corners(points)
        box = self.canvas.box(corners)
        if box is None:
            return
        if cast:
            self.shadow(corners, cast)
        mask = self.canvas.inside(corners, box)
        index = self._shade_index(mask, box, falloff, seam)
        table = cloth.table(self.scene.light_steps, roundness)
        if cloth.pattern != "plain":
            steps = cloth.steps(*self._cloth_coordinates(box, axis))
            np.maximum(index, 0, out=index)
            np.minimum(index, SHADES - 1, out=index)
            index += steps * SHADES
        color = table.take(index, mode="clip").view(np.uint8).reshape(*index.shape, 4)
        self.canvas.lay(box, mask, color)
        edge = corners[3 * self.canvas.curve_steps :] if open_start else corners
        self.canvas.line(edge, cloth.dark(58), OUTLINE, closed=not open_start)
        self.canvas.label[box[1] : box[3], box[0] : box[2]][mask.view(bool)] = label

    def _shade_index(self, mask: np.ndarray, box: tuple, falloff: int, seam: bool) -> np.ndarray:
        """Step of shade of each sample: about 0 at the lit edge of its row, SHADES - 1 at the other (h x w, int32)."""
        inside = mask.view(bool)
        height, width = inside.shape
        rows = _RAMP[:height]
        left = inside.argmax(axis=1).astype(np.int32)
        right = width - 1 - inside[:, ::-1].argmax(axis=1).astype(np.int32)
        if seam:  # rows of the pelvis belong to a tube twice as wide, rows of the leg to the leg alone
            share = np.maximum(0, 64 - (rows * 64) // max(1, (height * 3) // 10))
            reach = ((right - left) * share) >> 6
            if (box[0] + box[2]) // 2 < self.canvas.side // 2:
                right = right + reach
            else:
                left = left - reach
        step = (SHADES << 10) // (right - left + 1)
        start = left * -step
        if self.scene.light_side > 0:
            start, step = ((SHADES - 1) << 10) - start, -step
        start += rows * ((falloff << 10) // height)
        start -= falloff << 9
        index = step[:, None] * _RAMP[:width]
        index += start[:, None]
        index >>= 10
        return index

    def _cloth_coordinates(self, box: tuple, axis: tuple[Point, Point] | None) -> tuple[np.ndarray, np.ndarray]:
        """Across (from the middle line, both sides alike) and along the cloth, in 1/UNITS of the figure's height."""
        (x0, y0), (x1, y1) = self.place([(0.0, 0.0), (0.0, 1.0)] if axis is None else list(axis)).tolist()
        unit = 1 << SUBPIXEL_BITS
        xs = np.arange(box[0] * unit - x0, box[2] * unit - x0, unit, np.int32)
        ys = np.arange(box[1] * unit - y0, box[3] * unit - y0, unit, np.int32)
        dx, dy = x1 - x0, y1 - y0
        scale = (UNITS << 12) / (self._scale * unit * math.sqrt(dx * dx + dy * dy))
        ux, uy = int(dx * scale), int(dy * scale)
        across = np.abs(xs[None, :] * uy - ys[:, None] * ux) >> 12
        return across, (xs[None, :] * ux + ys[:, None] * uy) >> 12

    def shadow(self, corners: np.ndarray, reach: float) -> None:
        """The shadow of fixed-point `corners` on the person below, away from the light."""
        step = int(reach * self._scale * (1 << SUBPIXEL_BITS))
        self.canvas.tone(corners + (-self.scene.light_side * step, step), SHADOW_PERCENT, on_person=True)

    def patch(
        self, points: list[Point], cloth: Cloth, label: int = CLOTH_LABEL, curved: bool = True, cast: float = 0.0
    ) -> None:
        """A small part in one colour, lit by where it sits on the body; much cheaper than `part`."""
        corners = self.corners(points, curved)
        if cast:
            self.shadow(corners, cast)
        x = sum(x for x, _ in points) / len(points) * self.side * -self.scene.light_side
        index = SHADES // 2 + int(max(-0.12, min(0.12, x)) * 130)
        percent = shade_curve(self.scene.light_steps, ROUND_LIMB).item(index) * 100 // 128
        self.canvas.flat(corners, scaled(cloth.rgb, percent), label)
        self.canvas.line(corners, cloth.dark(58), OUTLINE, closed=True)

    def detail(self, points: list[Point], rgb: RGB, label: int | None = None, curved: bool = True) -> None:
        """A flat part without light: eyes, buttons, prints."""
        self.canvas.flat(self.corners(points, curved), rgb, label)

    def line(self, points: list[Point], rgb: RGB, width: float = 0.003, label: int | None = None) -> None:
        """An open line; `width` in figure heights."""
        corners, wide = self.place(points), width * self.person.height
        self.canvas.line(corners, rgb, wide)
        if label is not None:
            self.canvas.mark_line(corners, label, wide)

    def tone(self, points: list[Point], percent: int) -> None:
        """Take a region of whatever is there to `percent` of its colours."""
        self.canvas.tone(self.corners(points), percent)

    def fold(self, start: Point, end: Point, bend: float, percent: int = 83, width: float = 0.007) -> None:
        """A crescent-shaped fold of the cloth from `start` to `end`, bulging by `bend` to the person's left."""
        mx, my = (start[0] + end[0]) / 2 + bend, (start[1] + end[1]) / 2
        crescent = [start, start, (mx, my), end, end, (mx + width, my + width)]
        self.canvas.crease(self.corners(crescent), percent)

    def dot(self, x: float, y: float, radius: float, rgb: RGB) -> None:
        """A disc, drawn as an octagon that the spline rounds."""
        a = radius * 0.45
        ring = [
            (radius, a),
            (a, radius),
            (-a, radius),
            (-radius, a),
            (-radius, -a),
            (-a, -radius),
            (a, -radius),
            (radius, -a),
        ]
        self.detail([(x + px, y + py) for px, py in ring], rgb)
