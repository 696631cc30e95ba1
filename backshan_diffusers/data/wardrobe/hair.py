"""Hair styles. One outline per style serves both views, so that the silhouettes agree; the hairline is the front's.

Coordinates are in head units: x in half widths to the person's left, y in half heights, (0, 0) the middle of the head.
"""

from dataclasses import dataclass

from .canvas import HEAD_LABEL
from .fabric import Cloth, mixed
from .figure import Point
from .view import View

Outline = tuple[Point, ...]  # the left half, from the top downwards

CLOSE: Outline = ((0.0, -1.03), (0.62, -1.0), (0.98, -0.62), (1.06, -0.15), (0.98, 0.25), (0.55, 0.55))
CROP: Outline = ((0.0, -1.18), (0.7, -1.12), (1.1, -0.66), (1.14, -0.15), (1.0, 0.28), (0.55, 0.6))
FULL: Outline = (
    (0.0, -1.22),
    (0.78, -1.16),
    (1.18, -0.6),
    (1.26, 0.2),
    (1.34, 0.85),
    (1.28, 1.18),
    (1.28, 1.18),
    (0.6, 1.24),
)
LONG: Outline = (
    (0.0, -1.2),
    (0.78, -1.14),
    (1.2, -0.6),
    (1.3, 0.3),
    (1.46, 1.2),
    (1.62, 2.2),
    (1.4, 2.75),
    (0.7, 2.95),
)
WAVES: Outline = (
    (0.0, -1.2),
    (0.8, -1.14),
    (1.26, -0.6),
    (1.2, 0.0),
    (1.62, 0.6),
    (1.38, 1.2),
    (1.86, 1.7),
    (1.56, 2.3),
    (0.8, 2.6),
)
SHOULDERS: Outline = (
    (0.0, -1.2),
    (0.78, -1.14),
    (1.2, -0.6),
    (1.3, 0.3),
    (1.42, 1.1),
    (1.5, 1.66),
    (1.0, 1.7),
    (0.5, 1.62),
)
CURLS: Outline = (
    (0.2, -1.42),
    (0.5, -1.2),
    (0.95, -1.36),
    (1.0, -1.0),
    (1.45, -0.95),
    (1.3, -0.5),
    (1.64, -0.25),
    (1.36, 0.1),
    (1.62, 0.5),
    (1.2, 0.66),
    (1.1, 1.0),
    (0.5, 0.86),
)
AFRO: Outline = ((0.0, -1.68), (0.95, -1.6), (1.66, -1.0), (1.82, -0.25), (1.56, 0.5), (1.0, 0.82), (0.4, 0.7))
QUIFF: Outline = ((0.0, -1.42), (0.7, -1.4), (1.06, -0.9), (1.1, -0.3), (1.0, 0.2), (0.55, 0.5))
RIDGE: Outline = ((0.0, -1.56), (0.26, -1.5), (0.34, -1.0), (0.32, -0.2), (0.26, 0.5), (0.12, 0.64))

ROUND_LINE: Outline = ((0.0, -0.6), (0.45, -0.56), (0.86, -0.3), (0.98, 0.05))
HIGH_LINE: Outline = ((0.0, -0.7), (0.5, -0.64), (0.9, -0.36), (0.99, -0.1))
FRINGE_LINE: Outline = ((0.0, -0.26), (0.5, -0.27), (0.84, -0.2), (0.92, 0.1))
CURTAIN_LINE: Outline = ((0.0, -0.78), (0.3, -0.56), (0.76, -0.2), (0.96, 0.35), (1.0, 0.8))


@dataclass(frozen=True)
class Style:
    """How a style is drawn.

    `part`: where the hair parts, in head units towards `hair_side`, None for no parting. `shave`: skin seen, percent.
    """

    outline: Outline | None
    hairline: Outline = ROUND_LINE
    part: float | None = None
    shaved_sides: bool = False
    shave: int = 0
    extras: tuple[str, ...] = ()
    strands: int = 3

    @property
    def has_side(self) -> bool:
        """Whether it looks different with another `hair_side`: a parting in the middle has none."""
        return bool(self.part) or any(extra in SIDED for extra in self.extras)


STYLES: dict[str, Style] = {
    "bald": Style(None),
    "buzz cut": Style(CLOSE, HIGH_LINE, shave=38, strands=0),
    "short": Style(CROP),
    "side parting": Style(CROP, part=0.45),
    "undercut": Style(QUIFF, HIGH_LINE, part=0.55, shaved_sides=True),
    "mohawk": Style(RIDGE, HIGH_LINE, shaved_sides=True, strands=1),
    "quiff": Style(QUIFF, HIGH_LINE),
    "man bun": Style(CLOSE, HIGH_LINE, extras=("top knot",)),
    "pixie": Style(CROP, FRINGE_LINE, part=0.4),
    "bob": Style(FULL, CURTAIN_LINE, part=0.1),
    "fringe bob": Style(FULL, FRINGE_LINE),
    "shoulder length": Style(SHOULDERS, CURTAIN_LINE, part=0.3),
    "long": Style(LONG, CURTAIN_LINE, part=0.0, strands=5),
    "wavy": Style(WAVES, CURTAIN_LINE, part=0.35, strands=5),
    "curly": Style(CURLS, ROUND_LINE, strands=0, extras=("ringlets",)),
    "afro": Style(AFRO, ROUND_LINE, strands=0, extras=("ringlets",)),
    "ponytail": Style(CLOSE, HIGH_LINE, extras=("tail",)),
    "side ponytail": Style(CLOSE, HIGH_LINE, part=0.4, extras=("side tail",)),
    "bun": Style(CLOSE, HIGH_LINE, extras=("bun",)),
    "space buns": Style(CLOSE, HIGH_LINE, part=0.0, extras=("two buns",)),
    "braids": Style(CLOSE, HIGH_LINE, part=0.0, extras=("two braids",)),
    "side braid": Style(CROP, CURTAIN_LINE, part=0.4, extras=("one braid",)),
}


def to_figure(view: View, points: list[Point] | Outline) -> list[Point]:
    """Head units to person coordinates."""
    x0, y0, rx, ry = view.figure.head
    return [(x0 + x * rx, y0 + y * ry) for x, y in points]


def _both_sides(half: Outline) -> list[Point]:
    return [*half, *((-x, y) for x, y in reversed(half) if x)]


def _cloth(view: View, style: Style) -> Cloth:
    hair = view.person.hair_cloth
    return Cloth(mixed(hair.rgb, view.person.skin.rgb, style.shave)) if style.shave else hair


def paint_behind(view: View) -> None:
    """In the front view: all hair that falls behind neck and shoulders."""
    style = STYLES[view.person.hair]
    if view.is_front and style.outline is not None:
        view.patch(to_figure(view, _both_sides(style.outline)), _cloth(view, style).trim(84), HEAD_LABEL)
        for extra in style.extras:
            if extra in TAILS:
                TAILS[extra](view)


def paint_over_face(view: View) -> None:
    """In the front view: the hair above the hairline, and what hangs in front of the shoulders."""
    style = STYLES[view.person.hair]
    if style.outline is None:
        return
    cloth = _cloth(view, style)
    if style.shaved_sides:
        _paint_cap(view, CLOSE, HIGH_LINE, Cloth(mixed(cloth.rgb, view.person.skin.rgb, 55)), None)
    narrow = style.outline is RIDGE
    hairline = ((0.0, -0.66), (0.3, -0.64)) if narrow else style.hairline
    _paint_cap(view, style.outline, hairline, cloth, style.part)
    for extra in style.extras:
        if extra in KNOTS:
            KNOTS[extra](view)


def _paint_cap(view: View, outline: Outline, hairline: Outline, cloth: Cloth, part: float | None) -> None:
    """Hair between the outline and the hairline; a parting lifts the hairline at one place."""
    lowest = hairline[-1][1] + 0.12
    upper = [point for point in outline if point[1] <= lowest] or list(outline[:2])
    outer = [*upper, (upper[-1][0], lowest)] if upper[-1][0] > 0.9 else upper
    if part is None:
        inner = [*reversed([(-x, y) for x, y in hairline]), *hairline[1:]]
    else:
        at = part * view.person.hair_side
        inner = [
            *reversed([(-x + at * (1 - x), y) for x, y in hairline]),
            *((x + at * (1 - x), y) for x, y in hairline[1:]),
        ]
        middle = len(hairline) - 1
        inner[middle] = (at, inner[middle][1] - 0.12)
        inner.insert(middle, inner[middle])
    points = [*inner, *outer[::-1], *((-x, y) for x, y in outer)]
    view.part(to_figure(view, points), cloth, HEAD_LABEL, falloff=20)
    if part is not None:
        at = part * view.person.hair_side
        view.line(
            to_figure(view, [(at, inner[len(hairline) - 1][1]), (at * 0.9, outline[0][1] + 0.06)]),
            cloth.dark(62),
            0.003,
        )
    top = outline[0][1]
    for bend in (-0.5, 0.5) if outline is not RIDGE else ():
        view.fold(*to_figure(view, [(bend * 0.7, top + 0.2), (bend * 1.5, -0.5)]), bend * 0.01, 85, 0.004)


def paint_back(view: View) -> None:
    """In the back view: all hair, over head, neck and shoulders."""
    style = STYLES[view.person.hair]
    if style.outline is None:
        return
    cloth = _cloth(view, style)
    if style.shaved_sides:
        view.patch(to_figure(view, _both_sides(CLOSE)), Cloth(mixed(cloth.rgb, view.person.skin.rgb, 55)), HEAD_LABEL)
    view.part(to_figure(view, _both_sides(style.outline)), cloth, HEAD_LABEL, falloff=16, cast=0.008)
    bottom = style.outline[-1][1]
    for i in range(style.strands):
        x = (i + 1) / (style.strands + 1) * 2 - 1
        view.fold(*to_figure(view, [(x * 0.5, -0.75), (x * 0.95, bottom * 0.82 - 0.05)]), x * 0.012, 83, 0.004)
    if style.part is not None:
        at = style.part * view.person.hair_side
        view.line(
            to_figure(view, [(at * 0.86, style.outline[0][1] + 0.13), (at * 0.8, -0.6)]),
            mixed(cloth.rgb, view.person.skin.rgb, 55),
            0.003,
        )
    for extra in style.extras:
        {**TAILS, **KNOTS}[extra](view)


def _ball(view: View, x: float, y: float, radius: float) -> None:
    ring = [
        (0.0, -1.0),
        (0.75, -0.75),
        (1.0, 0.0),
        (0.75, 0.75),
        (0.0, 1.0),
        (-0.75, 0.75),
        (-1.0, 0.0),
        (-0.75, -0.75),
    ]
    points = to_figure(view, [(x + px * radius * 1.15, y + py * radius * 0.85) for px, py in ring])
    view.patch(points, view.person.hair_cloth, HEAD_LABEL)
    view.fold(*to_figure(view, [(x - radius * 0.6, y), (x + radius * 0.7, y + radius * 0.1)]), 0.004, 83, 0.004)


def _tail(view: View) -> None:
    x = 0.25 * view.person.hair_side
    points = [
        (-0.16, -0.62),
        (0.16, -0.62),
        (0.42 + x, 0.3),
        (0.5 + x, 1.5),
        (0.15 + 1.3 * x, 2.6),
        (-0.34 + x, 1.6),
        (-0.38, 0.3),
    ]
    view.part(to_figure(view, points), view.person.hair_cloth, HEAD_LABEL, cast=0.006)
    view.fold(*to_figure(view, [(0.0, -0.3), (x, 2.0)]), 0.006, 83, 0.005)
    if not view.is_front:
        view.line(to_figure(view, [(-0.24, -0.5), (0.24, -0.5)]), (196, 70, 84), 0.008)


def _side_tail(view: View) -> None:
    s = view.person.hair_side
    points = [(0.7, 0.1), (1.0, -0.1), (1.7, 0.6), (1.9, 1.5), (1.5, 2.5), (1.2, 1.6), (1.1, 0.7)]
    view.part(to_figure(view, [(s * x, y) for x, y in points]), view.person.hair_cloth, HEAD_LABEL)
    view.line(to_figure(view, [(s * 0.95, 0.3), (s * 1.3, 0.02)]), (196, 70, 84), 0.008)


def _braid(view: View, side: int) -> None:
    x, y = 1.12, 0.55
    for i in range(6):
        _ball(view, side * (x + 0.08 * (i % 2) + 0.06 * i), y + 0.34 * i, 0.27 - 0.018 * i)
    view.line(to_figure(view, [(side * 1.38, 2.4), (side * 1.62, 2.4)]), (196, 70, 84), 0.008)


def _two_braids(view: View) -> None:
    for side in (-1, 1):
        _braid(view, side)


def _one_braid(view: View) -> None:
    _braid(view, view.person.hair_side)


def _ringlets(view: View) -> None:
    cloth = view.person.hair_cloth
    spots = [(-0.9, -0.85), (-0.35, -1.1), (0.3, -1.05), (0.85, -0.8), (-1.15, -0.2), (1.15, -0.25)]
    if not view.is_front:
        spots += [(-0.5, -0.4), (0.1, -0.55), (0.55, -0.2), (-0.7, 0.2), (0.0, 0.1), (0.6, 0.4), (-0.2, 0.5)]
    for x, y in spots:
        arc = to_figure(view, [(x - 0.16, y), (x - 0.06, y - 0.12), (x + 0.1, y - 0.1), (x + 0.15, y + 0.04)])
        view.line(arc, cloth.dark(66 if sum(cloth.rgb) > 200 else 150), 0.0035)


TAILS = {"tail": _tail, "side tail": _side_tail}
KNOTS = {
    "top knot": lambda view: _ball(view, 0.0, -1.15, 0.34),
    "bun": lambda view: _ball(view, 0.0, -1.22, 0.44),
    "two buns": lambda view: [_ball(view, side * 0.78, -1.12, 0.36) for side in (-1, 1)],
    "two braids": _two_braids,
    "one braid": _one_braid,
    "ringlets": _ringlets,
}
SIDED = ("tail", "side tail", "one braid")  # what hangs to `hair_side`
