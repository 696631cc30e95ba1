"""Skin: trunk, neck, arms, hands, legs."""

from .canvas import HEAD_LABEL, SKIN_LABEL
from .figure import ANKLE, ARMPIT, CROTCH, HIP, NECK, SHOULDER, WAIST
from .view import ROUND_TRUNK, View


def paint_trunk(view: View) -> None:
    """Shoulders, chest and back, as far as no cloth will cover them, and the neck."""
    fig = view.figure
    half = [
        (fig.neck * 1.15, NECK - 0.006),
        (fig.shoulder * 0.6, 0.194),
        (fig.shoulder - 0.004, SHOULDER),
        (fig.chest, ARMPIT),
        (fig.waist, WAIST),
        (fig.hip, HIP),
        (fig.hip, CROTCH),
    ]
    outline = [*half, *((-x, y) for x, y in reversed(half))]
    if view.outfit.top_spec.sleeve > 0:  # only a neckline of skin will be seen
        view.patch(outline, view.person.skin, SKIN_LABEL)
        return
    view.part(outline, view.person.skin, SKIN_LABEL, roundness=ROUND_TRUNK)
    if view.is_front:
        tone = view.person.skin.dark(80)
        for side in (1, -1):
            view.line([(side * 0.012, 0.21), (side * fig.shoulder * 0.6, 0.207)], tone, 0.003)
    else:
        view.fold((0, 0.22), (0, 0.33), 0.004, 89, 0.006)
        for side in (1, -1):
            view.fold((side * 0.035, 0.235), (side * 0.045, 0.285), side * 0.008, 90, 0.005)


def paint_neck(view: View) -> None:
    """The neck, with the head's shadow on it."""
    fig = view.figure
    x = fig.head[0] * 0.7
    neck = [
        (x - fig.neck, 0.11),
        (x + fig.neck, 0.11),
        (fig.neck * 0.98, 0.165),
        (fig.neck * 1.25, NECK + 0.008),
        (0, NECK + 0.016),
        (-fig.neck * 1.25, NECK + 0.008),
        (-fig.neck * 0.98, 0.165),
    ]
    view.detail(neck, view.person.skin.dark(92), HEAD_LABEL)


def paint_arm(view: View, side: int) -> None:
    """Arm and hand; sleeves come later."""
    skin = view.person.skin
    view.patch(view.figure.hand(side), skin, SKIN_LABEL)
    if view.outfit.top_spec.sleeve == 1.0 and view.outfit.rolled_sleeve != side:
        return
    arm = view.figure.arm(side)
    view.part(arm.outline(round_start=True), skin, SKIN_LABEL, cast=0.008, open_start=True)


def paint_legs(view: View) -> None:
    """Both legs down to the ankles."""
    outfit = view.outfit
    covered = not outfit.top_spec.dress and outfit.bottom_spec.hem > ANKLE - 0.03
    for side in (-1, 1):
        leg = view.figure.leg(side)
        if covered:  # only the ankles will be seen
            view.patch(leg.part(0.85, 1.0).outline(), view.person.skin, SKIN_LABEL)
            continue
        view.part(leg.outline(), view.person.skin, SKIN_LABEL)
        (x, y), radius = leg.path[2], leg.radii[2]
        if view.is_front:
            view.fold((x - radius * 0.5, y + 0.008), (x + radius * 0.5, y + 0.008), 0.0, 90, 0.008)
        else:
            view.fold((x - radius * 0.2, y - 0.02), (x - radius * 0.2, y + 0.02), 0.002, 89, 0.005)
            (x, y), radius = leg.path[3], leg.radii[3]
            view.fold((x, y - 0.03), (x, y + 0.05), side * 0.005, 92, 0.006)
