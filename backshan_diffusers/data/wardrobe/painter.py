"""The order of the layers: who covers whom from the front and from the back."""

from .accessories import paint_bag, paint_bag_behind, paint_watch
from .backdrop import paint_backdrop
from .body import paint_arm, paint_legs, paint_neck, paint_trunk
from .bottoms import paint_bottom, paint_shoes
from .canvas import Canvas
from .face import paint_head
from .figure import Figure
from .hair import paint_back, paint_behind, paint_over_face
from .outfit import Outfit, Person, Scene
from .tops import paint_behind_neck, paint_collar, paint_sleeve, paint_top
from .view import View


def paint_pair(
    size: int, outfit: Outfit, person: Person, scene: Scene, left_out: frozenset[str] = frozenset()
) -> tuple[Canvas, Canvas]:
    """The back and the front with their labels, before the same backdrop; the front without what is `left_out`, names
    of which [`View`] has the list."""
    back = Canvas(size)
    paint_backdrop(back, scene, person)
    front = Canvas(size)
    front.color[:] = back.color
    figure = Figure(person)
    _paint_person(View(back, -1, outfit, person, scene, figure))
    _paint_person(View(front, 1, outfit, person, scene, figure, left_out))
    return back, front


def _paint_person(view: View) -> None:
    paint_behind(view)
    paint_bag_behind(view)
    paint_behind_neck(view)
    _paint_body(view)
    _paint_arms(view, over_trunk=False)
    _paint_clothes(view)
    _paint_arms(view, over_trunk=True)
    if view.is_front:
        if "collar" not in view.left_out:
            paint_collar(view)
        paint_bag(view)
        paint_head(view)
        paint_over_face(view)
    else:
        paint_head(view)
        paint_collar(view)
        paint_bag(view)
        paint_back(view)


def _paint_body(view: View) -> None:
    paint_legs(view)
    paint_shoes(view)
    paint_trunk(view)
    paint_neck(view)


def _paint_clothes(view: View) -> None:
    outfit = view.outfit
    if outfit.top_spec.dress:
        paint_top(view)
    elif outfit.tucked:
        paint_top(view)
        paint_bottom(view)
    else:
        paint_bottom(view)
        paint_top(view)


def _paint_arms(view: View, over_trunk: bool) -> None:
    """An arm held in front of the body is over the trunk from the front and under it from the back."""
    for side in (-1, 1):
        in_front = view.person.arms_in_front[(side + 1) // 2]
        if (in_front == view.is_front) == over_trunk:
            paint_arm(view, side)
            paint_watch(view, side)
            paint_sleeve(view, side)
