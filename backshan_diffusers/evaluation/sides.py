"""What a `wardrobe` front would look like with one of its one-sided things on the other side."""

from dataclasses import replace

import numpy as np

from ..data.wardrobe import Wardrobe
from ..data.wardrobe.painter import paint_pair

OUTFIT_SIDES = {
    "bag": "bag_side",
    "bare shoulder": "bare_shoulder",
    "longer hem": "hem_drop",
    "rolled sleeve": "rolled_sleeve",
}
"""One-sided things of an outfit, and the field whose sign is the wearer's side (0: there is none)."""

HAIR_SIDE = "hair side"
"""The name of the side to which hair is parted, tied or swept; it belongs to the person, not to the outfit."""


def other_side_fronts(split: str, size: int, index: int) -> dict[str, np.ndarray]:
    """The front of a `wardrobe` row, drawn again for each one-sided thing with that thing alone on the other side.

    Args:
        split, size: as in `load_pairs("wardrobe", ...)`.
        index: the row's position in the split.

    Returns:
        `size x size x 3` uint8 pictures by the thing's name. Hair is always among them; where it is symmetric its
        picture equals the true front.
    """
    outfit, person, scene, _ = Wardrobe(split, size).scene(index)
    moved = {
        name: (replace(outfit, **{field: -getattr(outfit, field)}), person)
        for name, field in OUTFIT_SIDES.items()
        if getattr(outfit, field)
    }
    moved[HAIR_SIDE] = outfit, replace(person, hair_side=-person.hair_side)
    return {name: paint_pair(size, *worn, scene)[1].picture() for name, worn in moved.items()}
