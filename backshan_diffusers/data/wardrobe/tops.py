"""Tops and dresses: trunk, sleeves, collars, and the details that only one side shows."""

import math
from collections.abc import Callable

from .canvas import CLOTH_LABEL
from .fabric import Cloth, mixed
from .figure import ARMPIT, HIP, NECK, SHOULDER, WAIST, Point
from .outfit import Outfit, TopSpec
from .view import ROUND_TRUNK, View

# neckline: (shape, extra half width, depth below the neck)
NECKLINES: dict[str, tuple[str, float, float]] = {
    "nape": ("round", 0.008, 0.006),
    "crew": ("round", 0.008, 0.026),
    "scoop": ("round", 0.018, 0.066),
    "v": ("v", 0.010, 0.075),
    "deep v": ("v", 0.008, 0.120),
    "wrap": ("v", 0.014, 0.105),
    "keyhole": ("round", 0.008, 0.008),
}
STRAPLESS = {"sweetheart": 0.24, "low": 0.285}
SKIRT_ROWS = 0.6
ZIP_RGB = (212, 212, 214)


def _neckline(view: View, kind: str) -> list[Point]:
    """From the right of the neck to its left."""
    shape, extra, depth = NECKLINES[kind]
    wide, middle = view.figure.neck * 1.05 + extra, view.center(0.19)
    side = [(wide, NECK), (wide, NECK)]
    if shape == "v":
        return [(-wide, NECK), (-wide, NECK), (middle, NECK + depth), (middle, NECK + depth), *side]
    low = NECK + depth * 1.15
    return [(-wide, NECK), (-wide, NECK), (-wide * 0.7 + middle, low), (wide * 0.7 + middle, low), *side]


def _flank(view: View, spec: TopSpec, side: int, hem: float) -> list[Point]:
    """From the shoulder down to the outer corner of the hem."""
    fig, ease = view.figure, spec.ease
    top = [(fig.shoulder * 0.62, 0.196), (fig.shoulder - 0.002 + ease * 0.3, SHOULDER), (fig.chest + ease, ARMPIT)]
    if spec.sleeve == 0:
        top = [
            (fig.shoulder * 0.6, 0.197),
            (fig.shoulder * 0.62, 0.2),
            (fig.chest * 0.84, 0.25),
            (fig.chest + ease, ARMPIT),
        ]
    waist = fig.waist + ease * (0.8 if "waist" in spec.details else 1.5)
    down = [(waist, WAIST)]
    if hem > HIP:
        down.append((fig.hip + ease, HIP))
    if hem > SKIRT_ROWS:
        down.append((fig.hip + ease + spec.flare * 0.5, (HIP + hem) / 2))
    wide = fig.body_at(hem) + ease + spec.flare
    if "rib" in spec.details:
        down.append((wide + 0.006, hem - 0.03))
        wide -= ease * 0.5
    return [(side * x, y) for x, y in [*top, *down, (wide, hem), (wide, hem)]]


def _hems(view: View) -> dict[int, float]:
    outfit = view.outfit
    hem = 0.47 if outfit.tucked else outfit.top_spec.hem
    drop = 0.0 if outfit.tucked else outfit.hem_drop
    return {side: hem + max(0.0, side * drop) for side in (-1, 1)}


def trunk_outline(view: View, spec: TopSpec, neck: str) -> list[Point]:
    """The trunk of a top or dress, from the neckline round over the hem."""
    hems, fig = _hems(view), view.figure
    flanks = {side: _flank(view, spec, side, hems[side]) for side in (-1, 1)}
    belly = [(0.0, (hems[-1] + hems[1]) / 2 + (0.008 if spec.dress else 0.003))]
    if neck == "one shoulder":
        bare = view.outfit.bare_shoulder
        flanks[bare] = flanks[bare][3:]
        start = (bare * fig.chest, ARMPIT - 0.012)
        slope = [start, start, (bare * 0.02, 0.235), (-bare * (fig.neck + 0.012), NECK + 0.004)]
        slope.append(slope[-1])
        edge = slope if bare < 0 else slope[::-1]
    elif neck in STRAPLESS:
        flanks = {side: flank[4:] for side, flank in flanks.items()}
        top, middle, wide = STRAPLESS[neck], view.center(ARMPIT), fig.chest + spec.ease
        peaks = 0.026 if neck == "sweetheart" else 0.0
        edge = [
            (-wide, ARMPIT - 0.01),
            (-wide, ARMPIT - 0.01),
            (-wide * 0.5, top - peaks * 0.3),
            (middle, top + peaks),
            (middle, top + peaks),
            (wide * 0.5, top - peaks * 0.3),
            (wide, ARMPIT - 0.01),
            (wide, ARMPIT - 0.01),
        ]
    else:
        edge = _neckline(view, neck)
    return [*edge, *flanks[1], *belly, *flanks[-1][::-1]]


def paint_behind_neck(view: View) -> None:
    """In the front view: what of the top stands behind the neck."""
    spec, cloth = view.outfit.top_spec, view.outfit.top_cloth
    if view.is_front and spec.collar == "hood" and "collar" not in view.left_out:
        view.part(_hood_outline(view, 0.235), cloth.trim(78))
    elif view.is_front and not (spec.neck == "one shoulder" or spec.neck in STRAPLESS):
        lining = view.outfit.inner_cloth if view.outfit.is_open else cloth
        wide = view.figure.neck * 1.05 + NECKLINES[spec.neck_back][1]
        view.patch(
            [(-wide, NECK - 0.006), (wide, NECK - 0.006), (wide * 1.4, 0.22), (-wide * 1.4, 0.22)], lining.trim(66)
        )


def paint_top(view: View) -> None:
    """The trunk of the top with its details, without sleeves and collar."""
    outfit, spec = view.outfit, view.outfit.top_spec
    cast = 0.0 if outfit.tucked else 0.016
    if view.is_front and outfit.is_open:
        _paint_inner(view)
        _paint_open_fronts(view)
    else:
        neck = spec.neck if view.is_front else spec.neck_back
        if view.is_front and outfit.top_spec.opens and neck in ("v", "deep v"):
            _paint_inner(view)
        view.part(trunk_outline(view, spec, neck), outfit.top_cloth, roundness=ROUND_TRUNK, cast=cast)
        if neck in STRAPLESS:
            _paint_straps(view, neck)
        elif spec.collar == "none" and neck in NECKLINES and spec.sleeve > 0:
            view.line(_neckline(view, neck)[1:-1], outfit.top_cloth.dark(76), 0.006)
    for detail in spec.details:
        painter = DETAILS.get(detail)
        if painter is not None and not (detail in POCKETS and "pockets" in view.left_out):
            painter(view)
    if shows_closure(outfit) and view.is_front and "closure" not in view.left_out:
        CLOSURES[spec.closure](view)
    _paint_folds(view)
    _paint_prints(view)


def _paint_inner(view: View) -> None:
    inner = TopSpec(ease=0.004, hem=min(view.outfit.top_spec.hem, 0.52) - 0.012)
    outline = trunk_outline(view, inner, "crew")
    limit = inner.hem
    view.part([(x, min(y, limit)) for x, y in outline], view.outfit.inner_cloth, roundness=ROUND_TRUNK, cast=0.01)
    view.line(_neckline(view, "crew")[1:-1], view.outfit.inner_cloth.dark(70), 0.004)


def _paint_open_fronts(view: View) -> None:
    """Two front panels that leave the middle free."""
    outfit, spec, middle = view.outfit, view.outfit.top_spec, view.center(0.3)
    wide = view.figure.neck * 1.05 + 0.006
    for side in (-1, 1):
        flank = _flank(view, spec, side, spec.hem)
        edge = [
            (middle + side * 0.034, spec.hem + 0.004),
            (middle + side * 0.034, spec.hem + 0.004),
            (middle + side * 0.024, WAIST),
            (middle + side * 0.03, 0.27),
            (side * wide, NECK),
            (side * wide, NECK),
        ]
        view.part([*flank, *edge], outfit.top_cloth, cast=0.008)
        if spec.closure == "zip":
            view.line([edge[0], edge[2], edge[3], edge[4]], ZIP_RGB, 0.006)


def paint_sleeve(view: View, side: int) -> None:
    """One sleeve with its cuff."""
    outfit, spec = view.outfit, view.outfit.top_spec
    if spec.sleeve == 0:
        return
    share = 0.58 if outfit.rolled_sleeve == side else min(spec.sleeve, 0.985)
    arm = view.figure.arm(side)
    ease = 0.005 + spec.ease * 0.55
    sleeve = arm.part(0.0, share, ease)
    axis = (sleeve.path[0], sleeve.path[-1])
    view.part(sleeve.outline(round_start=True), outfit.top_cloth, axis=axis, cast=0.008, open_start=True)
    for at in (0.42, 0.52) if share > 0.6 else ():
        (x, y), radius = arm.part(at, 1.0).path[0], arm.radii[2] + ease
        view.fold((x - radius * 0.8, y + 0.004), (x + radius * 0.6, y - 0.004), 0.0, 85, 0.006)
    if "quilt" in spec.details:
        for at in (0.2, 0.4, 0.6, 0.8):
            (x, y), radius = arm.part(at, 1.0).path[0], arm.radii[1] + ease * 0.9
            view.line(
                [(x - radius, y + side * 0.004), (x + radius, y - side * 0.004)], outfit.top_cloth.dark(66), 0.004
            )
    if outfit.rolled_sleeve == side:
        view.patch(arm.part(0.52, 0.6, ease + 0.003).outline(), outfit.top_cloth.trim(112))
    elif "rib" in spec.details or "cuff" in spec.details:
        view.patch(arm.part(0.93, 0.995, ease * 0.8).outline(), outfit.top_cloth.trim(80))
    elif spec.sleeve < 1:
        (x0, y0), (x1, y1) = sleeve.path[-2], sleeve.path[-1]
        norm = math.hypot(x1 - x0, y1 - y0) / sleeve.radii[-1]
        dx, dy = (x1 - x0) / norm, (y1 - y0) / norm
        x, y = x1 - 0.012 * dx / sleeve.radii[-1], y1 - 0.012 * dy / sleeve.radii[-1]
        view.line([(x - dy * 0.96, y + dx * 0.96), (x + dy * 0.96, y - dx * 0.96)], outfit.top_cloth.dark(72), 0.003)


def _paint_straps(view: View, neck: str) -> None:
    x, rgb = view.figure.shoulder * 0.52, view.outfit.top_cloth.dark(88)
    for side in (-1, 1):
        view.line([(side * x, 0.2), (side * x * 1.02, STRAPLESS[neck])], rgb, 0.008, CLOTH_LABEL)


def _paint_folds(view: View) -> None:
    """Where cloth gathers: at the armpits, over the waist, and behind along the spine, by which one sees a turn."""
    spec, fig = view.outfit.top_spec, view.figure
    if not view.is_front:
        x, wide, end = view.center(0.3), 0.009, min(HIP, *_hems(view).values())
        view.tone([(x, 0.25), (x, 0.25), (x + wide, 0.34), (x, end), (x, end), (x - wide, 0.34)], 72)
    if "quilt" in spec.details:
        return
    for side in (-1, 1):
        view.fold((side * fig.chest * 0.95, ARMPIT + 0.008), (side * fig.chest * 0.45, ARMPIT + 0.03), 0.0, 84, 0.008)
        view.fold((side * fig.waist * 0.96, WAIST + 0.02), (side * fig.waist * 0.4, WAIST - 0.004), 0.0, 87, 0.008)
    if spec.dress:
        hem = min(_hems(view).values())
        for at in (-0.7, -0.25, 0.3, 0.75):
            view.fold((at * fig.waist, HIP - 0.02), (at * (fig.hip + spec.flare), hem - 0.006), at * 0.014, 85, 0.011)


def _paint_prints(view: View) -> None:
    outfit = view.outfit
    name, y = (outfit.chest_print, 0.29) if view.is_front else (outfit.back_print, 0.31)
    if name in PRINTS and not (view.is_front and outfit.is_open) and not outfit.top_spec.dress:
        PRINTS[name](view, view.center(y), y, outfit.print_rgb)


def _print_bars(view: View, x: float, y: float, rgb: tuple) -> None:
    for row, wide in ((0, 0.045), (1, 0.032), (2, 0.04)):
        level = y - 0.022 + row * 0.018
        view.detail(
            [(x - wide, level), (x + wide, level), (x + wide, level + 0.01), (x - wide, level + 0.01)],
            rgb,
            curved=False,
        )


def _print_heart(view: View, x: float, y: float, rgb: tuple) -> None:
    shape = [
        (0, -0.016),
        (0, -0.016),
        (0.018, -0.034),
        (0.04, -0.018),
        (0.03, 0.012),
        (0, 0.036),
        (0, 0.036),
        (-0.03, 0.012),
        (-0.04, -0.018),
        (-0.018, -0.034),
    ]
    view.detail([(x + px, y + py) for px, py in shape], rgb)


def _print_star(view: View, x: float, y: float, rgb: tuple) -> None:
    ring = [(0, -40), (10, -13), (38, -12), (16, 6), (24, 33), (0, 17), (-24, 33), (-16, 6), (-38, -12), (-10, -13)]
    view.detail([(x + px / 1000, y + py / 1000) for px, py in ring], rgb, curved=False)


def _print_diamond(view: View, x: float, y: float, rgb: tuple) -> None:
    view.detail([(x, y - 0.045), (x + 0.036, y), (x, y + 0.045), (x - 0.036, y)], rgb, curved=False)


PRINTS: dict[str, Callable] = {
    "circle": lambda view, x, y, rgb: view.dot(x, y, 0.036, rgb),
    "bars": _print_bars,
    "heart": _print_heart,
    "star": _print_star,
    "diamond": _print_diamond,
}


def _contrast_button(cloth: Cloth) -> tuple[int, int, int]:
    return (244, 240, 230) if sum(cloth.rgb) < 480 else (88, 70, 62)


# Closures, and the edges of collars and pockets, are drawn about twice as large as in life: at 128 px a zip would
# otherwise be half a pixel wide, and neither an eye nor a model could tell what it is.


def _buttons(view: View) -> None:
    top, rows = 0.215, 5
    cloth, x, hem = view.outfit.top_cloth, view.center(0.3), min(_hems(view).values())
    view.line([(x - 0.015, top), (x - 0.015, hem)], cloth.dark(62), 0.004)
    view.line([(x + 0.015, top), (x + 0.015, hem)], cloth.dark(76), 0.004)
    for i in range(rows):
        view.dot(x, top + (i + 0.5) * (hem - top) / rows, 0.0105, _contrast_button(cloth))


def _placket(view: View) -> None:
    cloth, x = view.outfit.top_cloth, view.center(0.25)
    box = [(x - 0.017, 0.2), (x + 0.017, 0.2), (x + 0.017, 0.302), (x - 0.017, 0.302)]
    view.detail(box, cloth.dark(86), curved=False)
    view.line([*box, box[0]], cloth.dark(58), 0.004)
    for y in (0.225, 0.253, 0.281):
        view.dot(x, y, 0.0095, _contrast_button(cloth))


def _zip(view: View) -> None:
    x, hem, cloth = view.center(0.3), view.outfit.top_spec.hem, view.outfit.top_cloth
    view.line([(x, 0.2), (x, hem)], cloth.dark(52), 0.018)
    view.line([(x, 0.2), (x, hem)], ZIP_RGB, 0.008)
    view.dot(x, 0.235, 0.011, (236, 236, 238))


def _two_buttons(view: View) -> None:
    x, cloth = view.center(0.3), view.outfit.top_cloth
    view.line([(x + 0.006, 0.3), (x + 0.016, view.outfit.top_spec.hem)], cloth.dark(52), 0.005)
    for y in (0.34, 0.4):
        view.dot(x, y, 0.012, _contrast_button(cloth))


CLOSURES = {"buttons": _buttons, "placket": _placket, "zip": _zip, "two buttons": _two_buttons}


def shows_closure(outfit: Outfit) -> bool:
    """Whether the front shows a closure: a top that is worn open has none."""
    return outfit.top_spec.closure in CLOSURES and not outfit.is_open


def _rib(view: View) -> None:
    outfit, fig = view.outfit, view.figure
    spec = outfit.top_spec
    wide, top = fig.body_at(spec.hem) + spec.ease * 0.6, spec.hem - 0.022
    half = [(wide + 0.002, top), (wide - 0.002, spec.hem + 0.002)]
    gap = view.center(0.3) if view.is_front and outfit.is_open else None
    spans = [(-1, 1)] if gap is None else [(-1, -0.034 / wide), (0.034 / wide, 1)]
    for low, high in spans:
        points = [
            (low * half[0][0], top),
            (high * half[0][0], top),
            (high * half[1][0], half[1][1]),
            (low * half[1][0], half[1][1]),
        ]
        view.patch(points, outfit.top_cloth.trim(82), curved=False)


def _pocket(view: View, x: float) -> None:
    cloth = view.outfit.top_cloth
    box = [(x - 0.021, 0.268), (x + 0.021, 0.268), (x + 0.021, 0.304), (x, 0.313), (x - 0.021, 0.304)]
    view.tone([point for point in box for _ in range(2)], 92)
    view.line([*box, box[0]], cloth.dark(60), 0.004)


def _chest_pockets(view: View, sides: tuple[int, ...]) -> None:
    if view.is_front:
        for side in sides:
            _pocket(view, side * view.figure.chest * 0.52 + view.center(0.27) * 0.5)


def _logo(view: View) -> None:
    if view.is_front:
        x = view.figure.chest * 0.5 + view.center(0.27) * 0.5
        view.dot(x, 0.265, 0.009, view.outfit.print_rgb)


def _hip_pockets(view: View) -> None:
    if view.is_front:
        y = 0.452 if view.outfit.top_spec.hem < 0.6 else 0.5
        for side in (-1, 1):
            x = side * view.figure.hip * 0.68
            view.line([(x - 0.024, y), (x + 0.024, y + side * 0.002)], view.outfit.top_cloth.dark(62), 0.006)


def _kangaroo(view: View) -> None:
    if view.is_front:
        x, wide, cloth = view.center(0.44), view.figure.waist * 0.72, view.outfit.top_cloth
        shape = [
            (x - wide * 0.62, 0.405),
            (x + wide * 0.62, 0.405),
            (x + wide, 0.45),
            (x + wide, 0.484),
            (x - wide, 0.484),
            (x - wide, 0.45),
        ]
        view.tone([point for point in shape for _ in range(2)], 91)
        view.line([*shape, shape[0]], cloth.dark(58), 0.0045)


def _yoke(view: View) -> None:
    if not view.is_front:
        wide, dark = view.figure.shoulder * 0.86, view.outfit.top_cloth.dark(68)
        view.line([(-wide, 0.243), (0, 0.252), (wide, 0.243)], dark, 0.003)
        x = view.center(0.3)
        view.line([(x, 0.25), (x, min(_hems(view).values()) - 0.01)], view.outfit.top_cloth.dark(82), 0.0028)


def _vent(view: View) -> None:
    if not view.is_front:
        x, hem = view.center(0.45), view.outfit.top_spec.hem
        view.line([(x, 0.21), (x, hem - 0.07)], view.outfit.top_cloth.dark(76), 0.0026)
        view.tone([(x, hem - 0.08), (x, hem - 0.08), (x + 0.009, hem), (x - 0.009, hem)], 58)


def _quilt(view: View) -> None:
    fig, cloth, hem = view.figure, view.outfit.top_cloth, view.outfit.top_spec.hem
    gap = 0.036 if view.is_front and view.outfit.is_open else 0.0
    for row in range(5):
        y = 0.252 + row * (hem - 0.25) / 5
        wide = fig.body_at(y) + view.outfit.top_spec.ease * 0.9
        for side in (-1, 1):
            start = view.center(0.3) + side * gap
            view.line([(start, y + 0.006), (side * wide, y)], cloth.dark(64), 0.0045)


def _band(view: View) -> None:
    hem, wide = view.outfit.top_spec.hem, view.figure.body_at(0.49) + view.outfit.top_spec.ease * 0.95
    gap = 0.036 if view.is_front and view.outfit.is_open else 0.0
    for side in (-1, 1):
        view.line(
            [(side * gap + view.center(0.3), hem - 0.02), (side * wide, hem - 0.02)],
            view.outfit.top_cloth.dark(62),
            0.003,
        )


def _waist(view: View) -> None:
    fig, spec = view.figure, view.outfit.top_spec
    if spec.dress:
        wide = fig.waist + spec.ease * 0.8
        points = [
            (-wide, WAIST - 0.01),
            (wide, WAIST - 0.01),
            (wide * 1.02, WAIST + 0.012),
            (-wide * 1.02, WAIST + 0.012),
        ]
        view.patch(points, view.outfit.top_cloth.trim(74), curved=False)


def _sash(view: View) -> None:
    cloth = view.outfit.top_cloth
    if view.is_front:
        side = 1 if view.outfit.bag_side < 0 else -1
        x = side * view.figure.waist * 0.5
        for sway in (-0.012, 0.014):
            view.patch(
                [(x, WAIST), (x + sway, WAIST + 0.09), (x + sway + 0.012, WAIST + 0.088), (x + 0.008, WAIST)],
                cloth.trim(70),
            )
        view.dot(x, WAIST, 0.011, cloth.dark(66))
        view.line(
            [(-view.figure.neck, NECK + 0.01), (view.center(0.28), NECK + 0.105), (-side * 0.03, WAIST)],
            cloth.dark(70),
            0.003,
        )


def _slit(view: View) -> None:
    if view.is_front:
        hem = min(_hems(view).values())
        x = view.figure.hip * 0.5 * (1 if view.outfit.bare_shoulder <= 0 else -1)
        view.tone([(x, hem - 0.06), (x, hem - 0.06), (x + 0.008, hem), (x - 0.008, hem)], 54)
    elif view.outfit.top_spec.neck_back == "keyhole":
        view.detail([(0, 0.196), (0.008, 0.215), (0, 0.235), (-0.008, 0.215)], view.person.skin.dark(90))


def _seam(view: View) -> None:
    if not view.is_front:
        x = view.center(0.3)
        view.line([(x, 0.3), (x, HIP)], view.outfit.top_cloth.dark(68), 0.003)


POCKETS = frozenset({"pocket", "two pockets", "hip pockets", "kangaroo"})
DETAILS: dict[str, Callable[[View], None]] = {
    "rib": _rib,
    "pocket": lambda view: _chest_pockets(view, (1,)),
    "two pockets": lambda view: _chest_pockets(view, (-1, 1)),
    "logo": _logo,
    "hip pockets": _hip_pockets,
    "kangaroo": _kangaroo,
    "yoke": _yoke,
    "vent": _vent,
    "quilt": _quilt,
    "band": _band,
    "waist": _waist,
    "sash": _sash,
    "slit": _slit,
    "seam": _seam,
}


def paint_collar(view: View) -> None:
    """The collar or hood: under the chin in front, over the nape behind."""
    collar = view.outfit.top_spec.collar
    if collar in COLLARS:
        COLLARS[collar](view, view.outfit.top_cloth)
    if not view.is_front and view.outfit.is_open and collar in ("lapels", "none", "band"):
        wide = view.figure.neck * 1.02
        view.patch(
            [(-wide, NECK - 0.018), (wide, NECK - 0.018), (wide, NECK), (-wide, NECK)],
            view.outfit.inner_cloth.trim(92),
            curved=False,
        )


def _fold_collar(view: View, cloth: Cloth) -> None:
    wide = view.figure.neck * 1.05
    if not view.is_front:
        points = [
            (-wide, 0.152),
            (wide, 0.152),
            (wide + 0.014, 0.188),
            (0.02, 0.2),
            (-0.02, 0.2),
            (-wide - 0.014, 0.188),
        ]
        view.patch(points, cloth.trim(94), cast=0.006)
        return
    for side in (-1, 1):
        x = view.center(0.19)
        leaf = [
            (side * wide, 0.158),
            (side * wide, 0.158),
            (side * (wide + 0.014), 0.19),
            (side * (wide + 0.002) + x, 0.226),
        ]
        leaf += [leaf[-1], (x + side * 0.006, 0.205), (x + side * 0.004, 0.2)]
        view.patch(leaf, cloth.trim(94), cast=0.006)
        view.line(leaf[1:6], cloth.dark(50), 0.0045)


def _lapels(view: View, cloth: Cloth) -> None:
    wide = view.figure.neck * 1.05
    if not view.is_front:
        points = [
            (-wide, 0.16),
            (wide, 0.16),
            (wide + 0.016, 0.19),
            (0.02, 0.204),
            (-0.02, 0.204),
            (-wide - 0.016, 0.19),
        ]
        view.patch(points, cloth.trim(86), cast=0.006)
        return
    deep = 0.33 if not view.outfit.is_open else 0.4
    for side in (-1, 1):
        x = view.center(0.3) + (side * 0.026 if view.outfit.is_open else 0.0)
        leaf = [
            (side * wide, 0.166),
            (side * wide, 0.166),
            (side * (wide + 0.016), 0.19),
            (side * (wide + 0.03), 0.236),
            (side * (wide + 0.012), 0.243),
            (side * (wide + 0.026), 0.252),
        ]
        view.patch([*leaf, (x, deep), (x, deep), (side * wide * 0.9, 0.21)], cloth.trim(84), cast=0.006)
        view.line([*leaf[1:], (x, deep)], cloth.dark(48), 0.005)


def _roll_collar(view: View, cloth: Cloth) -> None:
    wide = view.figure.neck + 0.007
    points = [
        (-wide, 0.15),
        (-wide * 0.5, 0.153),
        (wide * 0.5, 0.153),
        (wide, 0.15),
        (wide + 0.006, 0.192),
        (0, 0.204),
        (-wide - 0.006, 0.192),
    ]
    view.patch(points, cloth.trim(92))
    view.line([(-wide, 0.172), (0, 0.178), (wide, 0.172)], cloth.dark(66), 0.003)


def _stand_collar(view: View, cloth: Cloth, low: float = 0.204, top: float = 0.15) -> None:
    wide = view.figure.neck + 0.012
    middle = low if not view.is_front else low + 0.01
    if view.is_front and view.outfit.is_open:
        for side in (-1, 1):
            view.patch(
                [
                    (side * wide, top),
                    (side * wide * 0.66, top + 0.006),
                    (side * wide * 0.5, 0.215),
                    (side * (wide + 0.008), 0.196),
                ],
                cloth.trim(88),
            )
        return
    points = [(-wide, top), (0, top + 0.006), (wide, top), (wide + 0.01, 0.194), (0, middle), (-wide - 0.01, 0.194)]
    view.patch(points, cloth.trim(88))
    if view.is_front:
        view.line([(view.center(0.18), top + 0.008), (view.center(0.18), low)], ZIP_RGB, 0.007)


def _hood_outline(view: View, low: float) -> list[Point]:
    wide = view.figure.neck
    half = [(wide * 0.9, 0.138), (wide + 0.028, 0.15), (wide + 0.046, 0.19), (wide + 0.04, min(low, 0.235))]
    return [*half, (0.0, low + 0.012), *((-x, y) for x, y in reversed(half)), (0.0, 0.15)]


def _hood(view: View, cloth: Cloth) -> None:
    if not view.is_front:
        view.part(_hood_outline(view, 0.282), cloth, roundness=ROUND_TRUNK, falloff=16, cast=0.012)
        wide = view.figure.neck
        view.line([(-wide - 0.024, 0.168), (0, 0.194), (wide + 0.024, 0.168)], cloth.dark(62), 0.004)
        view.fold((0, 0.2), (0, 0.26), 0.004, 85, 0.008)
        return
    wide = view.figure.neck
    for side in (-1, 1):
        rim = [
            (side * (wide + 0.004), 0.152),
            (side * (wide + 0.034), 0.17),
            (side * (wide + 0.034), 0.205),
            (view.center(0.2) + side * 0.004, 0.226),
            (view.center(0.2) + side * 0.004, 0.212),
            (side * (wide - 0.002), 0.19),
        ]
        view.patch(rim, cloth.trim(92), cast=0.006)
        view.line(rim[2:4], cloth.dark(50), 0.0045)
        cord = [(view.center(0.2) + side * 0.014, 0.222), (view.center(0.2) + side * 0.018, 0.272)]
        view.line(cord, mixed(cloth.rgb, (250, 250, 246), 75), 0.007)


COLLARS: dict[str, Callable[[View, Cloth], None]] = {
    "fold": _fold_collar,
    "lapels": _lapels,
    "roll": _roll_collar,
    "stand": _stand_collar,
    "band": lambda view, cloth: _stand_collar(view, cloth.trim(80), 0.202, 0.168),
    "hood": _hood,
}
