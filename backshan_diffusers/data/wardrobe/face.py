"""The head and the face on it."""

from collections.abc import Callable

from .canvas import FACE_LABEL, HEAD_LABEL
from .fabric import mixed
from .figure import Point
from .hair import to_figure
from .view import View


def paint_head(view: View) -> None:
    """Ears and skull; the face if it is the front."""
    jaw = 0.72 if view.person.masculine else 0.6
    skin = view.person.skin
    for side in (-1, 1):
        ear = [(0.94, -0.12), (1.12, -0.16), (1.14, 0.1), (1.0, 0.26), (0.92, 0.2)]
        view.patch(to_figure(view, [(side * x, y) for x, y in ear]), skin, HEAD_LABEL)
    half = [(0.0, -1.02), (0.66, -0.98), (1.02, -0.55), (1.04, 0.0), (0.98, 0.42), (jaw, 0.84), (0.3, 1.02)]
    skull = to_figure(view, [*half, *((-x, y) for x, y in reversed(half) if x)])
    view.part(skull, skin, FACE_LABEL if view.is_front else HEAD_LABEL, falloff=14, cast=0.012)
    if view.is_front and "face" not in view.left_out:
        _paint_face(view)


def _paint_face(view: View) -> None:
    person = view.person
    shift = person.turn * 0.55  # the features follow the turn of the head

    def at(points: list[Point]) -> list[Point]:
        return to_figure(view, [(x + shift, y) for x, y in points])

    blush = mixed(person.skin.rgb, (226, 92, 88), 20)
    for side in (-1, 1):
        (x, y) = at([(side * 0.55, 0.32)])[0]
        view.dot(x, y, 0.009, blush)
    BEARDS[person.beard](view, at)
    dark_hair = mixed(person.hair_cloth.rgb, (40, 30, 30), 45)
    for side in (-1, 1):
        x, y = at([(side * 0.41, 0.02)])[0]
        white = at([(side * 0.41 - 0.25, 0.03), (side * 0.41, -0.12), (side * 0.41 + 0.25, 0.03), (side * 0.41, 0.15)])
        view.detail(white, (250, 248, 246))
        view.dot(x, y, 0.0056, person.iris)
        view.dot(x, y, 0.0028, (28, 22, 24))
        lid = at(
            [
                (side * 0.41 - 0.24, 0.01),
                (side * 0.41 - 0.08, -0.09),
                (side * 0.41 + 0.08, -0.09),
                (side * 0.41 + 0.24, 0.01),
            ]
        )
        view.line(lid, (52, 36, 36), 0.0024 if person.masculine else 0.0032)
        brow = at([(side * 0.18, -0.2), (side * 0.42, -0.27), (side * 0.66, -0.2)])
        view.line(brow, dark_hair, 0.0048 if person.masculine else 0.0034)
    shade = person.skin.dark(74)
    view.line(at([(0.02, 0.05), (0.09, 0.34), (-0.08, 0.37)]), shade, 0.003)
    MOUTHS[person.mouth](view, at)
    if person.glasses:
        _paint_glasses(view, at)


def _smile(view: View, at: Callable) -> None:
    lips = mixed(view.person.skin.rgb, (186, 50, 66), 62 if not view.person.masculine else 40)
    view.detail(at([(-0.28, 0.57), (-0.28, 0.57), (0.0, 0.6), (0.28, 0.57), (0.28, 0.57), (0.0, 0.76)]), lips)
    view.line(at([(-0.27, 0.57), (0.0, 0.64), (0.27, 0.57)]), view.person.skin.dark(50), 0.0022)


def _calm(view: View, at: Callable) -> None:
    lips = mixed(view.person.skin.rgb, (176, 56, 70), 55 if not view.person.masculine else 34)
    view.detail(at([(-0.25, 0.62), (-0.08, 0.55), (0.08, 0.55), (0.25, 0.62), (0.0, 0.74)]), lips)
    view.line(at([(-0.2, 0.62), (0.2, 0.62)]), view.person.skin.dark(52), 0.0022)


def _open_smile(view: View, at: Callable) -> None:
    view.detail(at([(-0.27, 0.55), (-0.27, 0.55), (0.27, 0.55), (0.27, 0.55), (0.0, 0.84)]), (150, 46, 56))
    view.detail(at([(-0.22, 0.555), (0.22, 0.555), (0.16, 0.62), (-0.16, 0.62)]), (252, 250, 248), curved=False)


MOUTHS = {"smile": _smile, "calm": _calm, "open": _open_smile}


def _full_beard(view: View, at: Callable) -> None:
    rgb = mixed(view.person.hair_cloth.rgb, view.person.skin.rgb, 12)
    outer = [
        (-0.98, 0.1),
        (-0.94, 0.5),
        (-0.68, 0.86),
        (-0.3, 1.06),
        (0.3, 1.06),
        (0.68, 0.86),
        (0.94, 0.5),
        (0.98, 0.1),
    ]
    inner = [(0.74, 0.36), (0.4, 0.44), (0.0, 0.42), (-0.4, 0.44), (-0.74, 0.36)]
    view.detail(to_figure(view, [*outer, *inner]), rgb)


def _moustache(view: View, at: Callable) -> None:
    points = [(-0.34, 0.56), (-0.3, 0.46), (0.0, 0.4), (0.3, 0.46), (0.34, 0.56), (0.0, 0.53)]
    view.detail(at(points), mixed(view.person.hair_cloth.rgb, (50, 40, 40), 20))


def _stubble(view: View, at: Callable) -> None:
    points = [
        (-0.9, 0.3),
        (-0.66, 0.82),
        (-0.3, 1.0),
        (0.3, 1.0),
        (0.66, 0.82),
        (0.9, 0.3),
        (0.5, 0.46),
        (0.0, 0.42),
        (-0.5, 0.46),
    ]
    view.tone(to_figure(view, points), 85)


BEARDS = {"none": lambda view, at: None, "full": _full_beard, "moustache": _moustache, "stubble": _stubble}


def _paint_glasses(view: View, at: Callable) -> None:
    for side in (-1, 1):
        x = side * 0.43
        ring = at([(x - 0.3, -0.12), (x + 0.3, -0.12), (x + 0.28, 0.2), (x - 0.28, 0.2), (x - 0.3, -0.12)])
        view.line(ring, (40, 38, 44), 0.0034)
        view.line([*at([(side * 0.73, -0.06)]), *to_figure(view, [(side * 1.02, -0.1)])], (40, 38, 44), 0.003)
    view.line(at([(-0.13, -0.06), (0.13, -0.06)]), (40, 38, 44), 0.0034)
