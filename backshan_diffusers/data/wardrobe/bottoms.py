"""Trousers, skirts and shoes."""

from collections.abc import Callable

from .canvas import CLOTH_LABEL, SKIN_LABEL
from .fabric import Cloth
from .figure import ANKLE, CROTCH, HIP, KNEE, SOLE, WAIST, Point
from .view import ROUND_TRUNK, View

WAISTBAND = WAIST + 0.008


def paint_bottom(view: View) -> None:
    """The bottom of the outfit and its details."""
    outfit = view.outfit
    spec = outfit.bottom_spec
    (_paint_trousers if spec.kind == "trousers" else _paint_skirt)(view)
    for detail in spec.details:
        painter = DETAILS.get(detail)
        if painter is not None:
            painter(view)
    _paint_waistband(view)


def _leg_outline(view: View, side: int) -> list[Point]:
    """Half of a pair of trousers, from the middle of the waistband to the hem."""
    fig, spec = view.figure, view.outfit.bottom_spec
    thigh, knee, end = spec.widths
    leg = fig.leg(side)
    (tx, ty), (kx, ky) = leg.path[1], leg.path[2]
    low = leg.part(0.0, max(0.2, min(1.0, (spec.hem - HIP) / (ANKLE - HIP))))
    (hx, _), radius = low.path[-1], low.radii[-1]
    outer = [
        (side * (fig.waist + 0.004), WAISTBAND),
        (side * (fig.hip + thigh), HIP),
        (tx + side * (leg.radii[1] + thigh), ty),
    ]
    inner = [(tx - side * (leg.radii[1] * 0.98 + thigh), ty), (side * 0.003, CROTCH + 0.012)]
    if spec.hem > KNEE + 0.05:
        outer.append((kx + side * (leg.radii[2] + knee), ky))
        inner.insert(0, (kx - side * (leg.radii[2] + knee), ky))
        if end < 0.02:
            (cx, cy), calf = leg.path[3], leg.radii[3]
            outer.append((cx + side * (calf + (knee + end) / 2), cy))
            inner.insert(0, (cx - side * (calf + (knee + end) / 2), cy))
    hem = [(hx + side * (radius + end), spec.hem)] * 2 + [(hx - side * (radius + end), spec.hem)] * 2
    hem = [(x if side * x > 0.002 else side * 0.002, y) for x, y in hem]
    inner = [(x if side * x > 0.002 else side * 0.002, y) for x, y in inner]
    return [(0.0, WAISTBAND), (0.0, WAISTBAND), *outer[:1], *outer, *hem, *inner, (0.0, CROTCH), (0.0, CROTCH)]


def _paint_trousers(view: View) -> None:
    spec, cloth = view.outfit.bottom_spec, view.outfit.bottom_cloth
    for side in (-1, 1):
        leg = view.figure.leg(side)
        low = leg.part(0.0, max(0.2, min(1.0, (spec.hem - HIP) / (ANKLE - HIP))))
        (hx, _), radius = low.path[-1], low.radii[-1] + spec.widths[2]
        view.part(
            _leg_outline(view, side),
            cloth,
            seam=True,
            axis=((leg.path[0][0], HIP), (leg.path[2][0], KNEE)),
            cast=0.006,
        )
        (kx, ky), knee = leg.path[2], leg.radii[2] + spec.widths[1]
        view.fold((side * 0.012, CROTCH + 0.008), (side * view.figure.hip * 0.8, CROTCH + 0.03), 0.0, 85, 0.009)
        if spec.hem > KNEE + 0.05:
            view.fold((kx - knee * 0.7, ky + 0.012), (kx + knee * 0.5, ky - 0.004), 0.0, 86)
            view.fold((hx - radius * 0.7, spec.hem - 0.03), (hx + radius * 0.6, spec.hem - 0.018), 0.0, 86)
        view.line([(hx - radius * 0.9, spec.hem - 0.01), (hx + radius * 0.9, spec.hem - 0.01)], cloth.dark(74), 0.0025)


def _paint_skirt(view: View) -> None:
    fig, spec, cloth = view.figure, view.outfit.bottom_spec, view.outfit.bottom_cloth
    hip, low, end = spec.widths
    middle = (HIP + spec.hem) / 2
    half = [
        (fig.waist + 0.004, WAISTBAND),
        (fig.waist + 0.004, WAISTBAND),
        (fig.hip + hip, HIP),
        (fig.hip + low, middle),
        (fig.hip + end, spec.hem),
        (fig.hip + end, spec.hem),
    ]
    hem = [(fig.hip * 0.5, spec.hem + 0.012), (-fig.hip * 0.5, spec.hem + 0.012)]
    view.part([*half, *hem, *((-x, y) for x, y in reversed(half))], cloth, roundness=ROUND_TRUNK, cast=0.018)


def _paint_waistband(view: View) -> None:
    """The waistband, or a belt with its buckle in front."""
    fig, outfit = view.figure, view.outfit
    belt = outfit.has_belt
    cloth = Cloth((74, 52, 42)) if belt and sum(outfit.bottom_cloth.rgb) > 240 else outfit.bottom_cloth.trim(80)
    if belt and sum(outfit.bottom_cloth.rgb) <= 240:
        cloth = Cloth((150, 100, 60))
    wide, high = fig.waist + 0.006, 0.019
    low = fig.body_at(WAISTBAND + high) + 0.006
    view.patch(
        [(-wide, WAISTBAND), (wide, WAISTBAND), (low, WAISTBAND + high), (-low, WAISTBAND + high)], cloth, curved=False
    )
    x = view.center(WAIST)
    if belt and view.is_front:
        box = [
            (x - 0.011, WAISTBAND),
            (x + 0.011, WAISTBAND),
            (x + 0.011, WAISTBAND + high),
            (x - 0.011, WAISTBAND + high),
        ]
        view.detail(box, (222, 196, 120), curved=False)
    elif belt:
        for at in (-0.5, 0.0, 0.5):
            view.line(
                [(x + at * wide, WAISTBAND), (x + at * wide, WAISTBAND + high)], outfit.bottom_cloth.dark(78), 0.006
            )


def _fly(view: View) -> None:
    if view.is_front:
        x, dark = view.center(HIP), view.outfit.bottom_cloth.dark(62)
        view.line([(x, WAISTBAND + 0.02), (x, 0.5)], dark)
        view.line([(x + 0.013, WAISTBAND + 0.02), (x + 0.012, 0.475), (x, 0.495)], dark, 0.002)
    else:
        x = view.center(HIP)
        view.line([(x, WAISTBAND + 0.02), (0.0, CROTCH + 0.01)], view.outfit.bottom_cloth.dark(66), 0.003)
        for side in (-1, 1):
            hip = view.figure.hip
            view.fold((side * 0.012, 0.52), (side * hip * 0.8, 0.522), 0.0, 87, 0.008)


def _pockets(view: View, patch: bool) -> None:
    hip, dark = view.figure.hip, view.outfit.bottom_cloth.dark(60)
    for side in (-1, 1):
        x = view.center(HIP) + side * hip * 0.5
        if view.is_front:
            view.line(
                [(side * hip * 0.5, WAISTBAND + 0.02), (side * hip * 0.7, 0.445), (side * hip * 0.98, 0.455)], dark
            )
        elif patch:
            box = [(x - 0.022, 0.435), (x + 0.022, 0.435), (x + 0.021, 0.478), (x, 0.49), (x - 0.021, 0.478)]
            view.detail(box, view.outfit.bottom_cloth.dark(88), curved=False)
            view.line([*box, box[0]], dark, 0.0028)
            view.line([(x - 0.022, 0.443), (x + 0.022, 0.443)], (214, 170, 96), 0.002)
        else:
            view.line([(x - 0.022, 0.45), (x + 0.022, 0.45)], dark, 0.004)


def _crease(view: View) -> None:
    for side in (-1, 1):
        path = view.figure.leg(side).path
        points = [path[1], path[2], (path[-1][0], view.outfit.bottom_spec.hem - 0.01)]
        view.line(points, view.outfit.bottom_cloth.dark(80), 0.0028)


def _outer_seams(view: View, percent: int = 74) -> None:
    rgb = view.outfit.bottom_cloth.dark(percent) if percent < 100 else view.outfit.shoe_cloth.rgb
    for side in (-1, 1):
        leg = view.figure.leg(side)
        points = [(x + side * radius * 0.72, y) for (x, y), radius in zip(leg.path[1:], leg.radii[1:], strict=True)]
        view.line(points, rgb, 0.003 if percent < 100 else 0.007)


def _pleats(view: View) -> None:
    fig, spec = view.figure, view.outfit.bottom_spec
    for at in (-0.75, -0.42, -0.1, 0.22, 0.55):
        top, low = at * fig.waist, at * (fig.hip + spec.widths[2])
        view.fold((top, WAISTBAND + 0.04), (low, spec.hem - 0.004), at * 0.012, 85, 0.012)


def _back_vent(view: View) -> None:
    if not view.is_front:
        x, hem = view.center(HIP), view.outfit.bottom_spec.hem
        view.line([(x, WAISTBAND + 0.02), (x, hem - 0.06)], view.outfit.bottom_cloth.dark(70), 0.0026)
        view.tone([(x, hem - 0.07), (x, hem - 0.07), (x + 0.01, hem + 0.008), (x - 0.01, hem + 0.008)], 58)
    else:
        view.fold((-0.04, HIP), (0.03, HIP + 0.03), 0.0, 89)


def _cuffs(view: View) -> None:
    spec = view.outfit.bottom_spec
    for side in (-1, 1):
        low = view.figure.leg(side).part(0.93, 1.0, spec.widths[2] * 0.7)
        view.patch(low.outline(), view.outfit.bottom_cloth.trim(82))


def _drawstring(view: View) -> None:
    if view.is_front:
        for side in (-1, 1):
            x = view.center(HIP)
            view.line(
                [(x + side * 0.003, WAISTBAND + 0.015), (x + side * 0.012, WAISTBAND + 0.07)], (240, 240, 236), 0.004
            )


DETAILS: dict[str, Callable[[View], None]] = {
    "fly": _fly,
    "patch pockets": lambda view: _pockets(view, patch=True),
    "welt pockets": lambda view: _pockets(view, patch=False),
    "seams": _outer_seams,
    "side stripe": lambda view: _outer_seams(view, 100),
    "crease": _crease,
    "pleats": _pleats,
    "vent": _back_vent,
    "cuffs": _cuffs,
    "drawstring": _drawstring,
}


def paint_shoes(view: View) -> None:
    """Socks and shoes."""
    for side in (-1, 1):
        x, _ = view.figure.leg(side).path[-1]
        if view.outfit.socks and view.outfit.shoes in ("sneakers", "high-tops", "loafers"):
            sock = view.figure.leg(side).part(0.86, 1.0, 0.003)
            view.patch(sock.outline(), Cloth((236, 236, 232)))
        SHOES[view.outfit.shoes](view, side, x)


def _foot(x: float, side: int, top: float, wide: float, toe: float) -> list[Point]:
    """A foot that points at the camera or away from it, turned out a little."""
    return [
        (x - side * wide * 0.8, top),
        (x + side * wide * 0.8, top),
        (x + side * wide * 1.25, 0.958),
        (x + side * (wide * 1.3 + toe), SOLE),
        (x + side * (wide * 1.3 + toe), SOLE),
        (x - side * wide * 1.05, SOLE),
        (x - side * wide * 1.05, SOLE),
        (x - side * wide * 1.0, 0.958),
    ]


def _sneakers(view: View, side: int, x: float, top: float = 0.932) -> None:
    cloth = view.outfit.shoe_cloth
    foot = _foot(x, side, top, 0.024, 0.008)
    view.patch(foot, cloth)
    sole = (244, 244, 240) if sum(cloth.rgb) < 620 else (176, 178, 182)
    view.detail(
        [(x - side * 0.026, 0.974), (x + side * 0.037, 0.974), (x + side * 0.041, SOLE), (x - side * 0.026, SOLE)],
        sole,
        curved=False,
    )
    if view.is_front:
        for y in (0.945, 0.953, 0.961):
            view.line([(x - 0.01 + side * 0.004, y), (x + 0.01 + side * 0.004, y)], sole, 0.0035)
    else:
        view.line([(x, top + 0.004), (x, 0.965)], sole, 0.008)


def _high_tops(view: View, side: int, x: float) -> None:
    _sneakers(view, side, x, 0.9)


def _boots(view: View, side: int, x: float) -> None:
    cloth = view.outfit.shoe_cloth
    shaft = view.figure.leg(side).part(0.72, 1.0, 0.009)
    view.part(shaft.outline(), cloth)
    view.patch(_foot(x, side, 0.93, 0.026, 0.007), cloth)
    view.detail(
        [(x - side * 0.027, 0.977), (x + side * 0.041, 0.977), (x + side * 0.041, SOLE), (x - side * 0.027, SOLE)],
        cloth.dark(50),
        curved=False,
    )
    view.line([(x, 0.88), (x, 0.95)], cloth.dark(60 if view.is_front else 140), 0.004)


def _heels(view: View, side: int, x: float) -> None:
    cloth = view.outfit.shoe_cloth
    view.patch(_foot(x, side, 0.945, 0.018, 0.0), view.person.skin, SKIN_LABEL)
    if view.is_front:
        view.patch(
            [(x - side * 0.019, 0.962), (x + side * 0.024, 0.962), (x + side * 0.024, SOLE), (x - side * 0.018, SOLE)],
            cloth,
        )
    else:
        view.patch([(x - 0.018, 0.945), (x + 0.018, 0.945), (x + 0.016, 0.968), (x - 0.016, 0.968)], cloth)
        view.patch([(x - 0.006, 0.962), (x + 0.006, 0.962), (x + 0.004, SOLE), (x - 0.004, SOLE)], cloth, curved=False)


def _sandals(view: View, side: int, x: float) -> None:
    cloth = view.outfit.shoe_cloth
    view.patch(_foot(x, side, 0.938, 0.021, 0.006), view.person.skin, SKIN_LABEL)
    view.detail(
        [(x - side * 0.023, 0.978), (x + side * 0.034, 0.978), (x + side * 0.034, SOLE), (x - side * 0.023, SOLE)],
        cloth.dark(70),
        CLOTH_LABEL,
        curved=False,
    )
    levels = (0.945, 0.966) if view.is_front else (0.947,)
    for y in levels:
        view.line([(x - 0.021, y), (x + 0.023 + side * 0.003, y)], cloth.rgb, 0.007, CLOTH_LABEL)


def _loafers(view: View, side: int, x: float) -> None:
    cloth = view.outfit.shoe_cloth
    view.patch(_foot(x, side, 0.942, 0.022, 0.005), cloth)
    if view.is_front:
        view.detail(
            [(x - 0.012, 0.943), (x + 0.014, 0.943), (x + 0.01 + side * 0.004, 0.956), (x - 0.01, 0.956)],
            cloth.dark(64),
        )
    view.line([(x - side * 0.023, SOLE - 0.004), (x + side * 0.033, SOLE - 0.004)], cloth.dark(45), 0.005)


SHOES: dict[str, Callable[[View, int, float], None]] = {
    "sneakers": _sneakers,
    "high-tops": _high_tops,
    "boots": _boots,
    "heels": _heels,
    "sandals": _sandals,
    "loafers": _loafers,
}
