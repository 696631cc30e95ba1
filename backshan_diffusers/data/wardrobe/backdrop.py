"""What stands behind the person, in picture coordinates: not mirrored, since the camera stays where it is."""

import cv2
import numpy as np

from .canvas import Canvas
from .fabric import mixed, scaled
from .outfit import Person, Scene

GRADIENT_STEPS = 256


def paint_backdrop(canvas: Canvas, scene: Scene, person: Person) -> None:
    """Wall, floor, things standing about, and the person's shadow on the floor."""
    first, second = scene.colors
    cv2.rectangle(canvas.color, (0, 0), (canvas.side, canvas.side), first, cv2.FILLED)
    if scene.backdrop == "gradient":
        _paint_gradient(canvas, first, second)
    elif scene.backdrop == "cluttered":
        _paint_room(canvas, scene)
    _paint_ground_shadow(canvas, scene, person)


def _paint_gradient(canvas: Canvas, first: tuple, second: tuple) -> None:
    share = (np.arange(canvas.side, dtype=np.int64) * GRADIENT_STEPS // canvas.side)[:, None]
    a, b = np.array(first, np.int64), np.array(second, np.int64)
    column = ((a * (GRADIENT_STEPS - share) + b * share) // GRADIENT_STEPS).astype(np.uint8)
    canvas.color[:] = np.tile(column, canvas.side).reshape(canvas.color.shape)


def _paint_room(canvas: Canvas, scene: Scene) -> None:
    first, second = scene.colors
    for left, top, right, bottom, rgb in scene.blocks:
        frame = canvas.fixed(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]))
        canvas.flat(frame, rgb)
        canvas.line(frame, scaled(rgb, 82), 0.006, closed=True)
    floor = [(-0.1, scene.horizon), (1.1, scene.horizon), (1.1, 1.1), (-0.1, 1.1)]
    canvas.flat(canvas.fixed(np.array(floor)), mixed(second, (120, 104, 92), 35))
    skirting = [
        (-0.1, scene.horizon - 0.012),
        (1.1, scene.horizon - 0.012),
        (1.1, scene.horizon),
        (-0.1, scene.horizon),
    ]
    canvas.flat(canvas.fixed(np.array(skirting)), mixed(first, (255, 255, 255), 50))


def _paint_ground_shadow(canvas: Canvas, scene: Scene, person: Person) -> None:
    ground = 0.5 + 0.477 * person.height
    away = -scene.light_side
    for reach, percent in ((1.0, 91), (0.8, 91), (0.6, 89)):
        middle, wide, high = 0.5 + away * 0.05, 0.19 * reach, 0.02 * reach
        ring = [
            (-wide, 0),
            (-wide * 0.7, -high),
            (0, -high * 1.3),
            (wide * 0.7, -high),
            (wide, 0),
            (wide * 0.7, high),
            (0, high * 1.3),
            (-wide * 0.7, high),
        ]
        canvas.tone(canvas.fixed(np.array([(middle + x, ground + y) for x, y in ring])), percent)
