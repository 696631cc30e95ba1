"""Bags and watches."""

from .canvas import CLOTH_LABEL
from .figure import ARMPIT
from .view import ROUND_TRUNK, View


def _backpack_body(view: View) -> None:
    cloth, wide = view.outfit.bag_cloth, view.figure.chest * 0.96
    half = [(wide * 0.7, 0.218), (wide, 0.25), (wide * 1.12, 0.36), (wide * 1.08, 0.44), (wide * 0.9, 0.452)]
    view.part([*half, *((-x, y) for x, y in reversed(half))], cloth, roundness=ROUND_TRUNK, cast=0.014, falloff=14)


def paint_bag_behind(view: View) -> None:
    """In the front view: the backpack behind the trunk."""
    if view.is_front and view.outfit.bag == "backpack":
        _backpack_body(view)


def paint_bag(view: View) -> None:
    """Bags over trunk and arms."""
    bag = view.outfit.bag
    if bag in BAGS:
        BAGS[bag](view)


def _backpack(view: View) -> None:
    cloth, fig = view.outfit.bag_cloth, view.figure
    if view.is_front:
        for side in (-1, 1):
            x = side * fig.shoulder * 0.6
            strap = [
                (x - 0.011, 0.194),
                (x + 0.011, 0.194),
                (x + side * 0.008 + 0.011, 0.27),
                (side * fig.chest * 0.98, 0.35),
                (side * fig.chest * 0.98, 0.37),
                (x + side * 0.004 - 0.011, 0.275),
            ]
            view.patch(strap, cloth.trim(86))
        return
    _backpack_body(view)
    wide = fig.chest * 0.7
    view.line([(-wide, 0.262), (0, 0.272), (wide, 0.262)], cloth.dark(58), 0.004)
    pocket = [(-wide, 0.345), (wide, 0.345), (wide * 1.02, 0.43), (-wide * 1.02, 0.43)]
    view.patch(pocket, cloth.trim(110), curved=False)
    view.line([(-wide * 0.8, 0.36), (wide * 0.8, 0.36)], cloth.dark(50), 0.003)
    view.line([(-0.016, 0.222), (-0.012, 0.208), (0.012, 0.208), (0.016, 0.222)], cloth.dark(60), 0.006)


def _bag_at(view: View, x: float, y: float, wide: float, high: float) -> None:
    cloth = view.outfit.bag_cloth
    box = [
        (x - wide * 0.92, y),
        (x + wide * 0.92, y),
        (x + wide, y + high * 0.5),
        (x + wide * 0.96, y + high),
        (x - wide * 0.96, y + high),
        (x - wide, y + high * 0.5),
    ]
    view.part([box[0], *box, box[0]], cloth, cast=0.01)
    if view.is_front:
        view.line(
            [(x - wide * 0.95, y + high * 0.4), (x, y + high * 0.5), (x + wide * 0.95, y + high * 0.4)],
            cloth.dark(58),
            0.004,
        )
        view.dot(x, y + high * 0.52, 0.006, (226, 200, 124))


def _crossbody(view: View) -> None:
    side, fig = view.outfit.bag_side, view.figure
    x = side * (fig.hip + 0.012)
    strap = [
        (-side * fig.shoulder * 0.62, 0.197),
        (-side * fig.shoulder * 0.3, 0.25),
        (side * fig.waist * 0.55, 0.37),
        (x, 0.452),
    ]
    view.line(strap, view.outfit.bag_cloth.dark(72), 0.0105, CLOTH_LABEL)
    _bag_at(view, x, 0.448, 0.05, 0.078)


def _shoulder_bag(view: View) -> None:
    side, fig = view.outfit.bag_side, view.figure
    x = side * (fig.shoulder + 0.006)
    rgb = view.outfit.bag_cloth.dark(72)
    view.line(
        [(side * fig.shoulder * 0.74, 0.202), (x - side * 0.014, ARMPIT), (x - side * 0.026, 0.36)],
        rgb,
        0.0095,
        CLOTH_LABEL,
    )
    view.line(
        [(side * fig.shoulder * 0.8, 0.203), (x + side * 0.006, ARMPIT), (x + side * 0.034, 0.36)],
        rgb,
        0.0095,
        CLOTH_LABEL,
    )
    _bag_at(view, x, 0.352, 0.058, 0.098)


def _handbag(view: View) -> None:
    side = view.outfit.bag_side
    x, y = view.figure.hand(side)[3]
    rgb = view.outfit.bag_cloth.dark(66)
    view.line(
        [(x - 0.028, y + 0.036), (x - 0.016, y - 0.008), (x + 0.016, y - 0.008), (x + 0.028, y + 0.036)],
        rgb,
        0.007,
        CLOTH_LABEL,
    )
    _bag_at(view, x, y + 0.03, 0.045, 0.064)


BAGS = {"backpack": _backpack, "crossbody": _crossbody, "shoulder": _shoulder_bag, "handbag": _handbag}


def paint_watch(view: View, side: int) -> None:
    """A watch on one wrist, over skin."""
    covered = view.outfit.top_spec.sleeve == 1.0 and view.outfit.rolled_sleeve != side
    if view.outfit.watch != side or covered:
        return
    strap = view.figure.arm(side).part(0.9, 0.97, 0.003)
    (x0, y0), (x1, y1) = strap.path[0], strap.path[-1]
    view.line([(x0, y0), (x1, y1)], (50, 44, 44), 0.03 if view.person.masculine else 0.026, CLOTH_LABEL)
    if not view.is_front:
        view.dot((x0 + x1) / 2, (y0 + y1) / 2, 0.009, (236, 226, 190))
