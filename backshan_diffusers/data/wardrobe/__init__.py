"""`wardrobe`: pairs drawn by code from a seed, any number of them, at any size."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .canvas import FACE, GARMENT, HEAD, PERSON
from .hair import STYLES
from .outfit import Outfit, Person, Scene, sample_outfit, sample_person, sample_scene
from .painter import paint_pair
from .tops import COLLARS, POCKETS, shows_closure

SEEDS_PER_SPLIT = 10_000_000
SPLITS = {"train": 0, "validation": SEEDS_PER_SPLIT, "test": 2 * SEEDS_PER_SPLIT}  # first seed of each
SMALLEST, LARGEST = 64, 1024
DRAWING = 3  # raised whenever any seed gives other pixels, so that no cache outlives the code that filled it
LABELS = 2  # the same for the attributes
RUN = 8  # in every run of this many, the last wears the outfit of the one before

OUTFIT_SIDES = {
    "bag": "bag_side",
    "bare shoulder": "bare_shoulder",
    "longer hem": "hem_drop",
    "rolled sleeve": "rolled_sleeve",
}
"""One-sided things of an outfit, and the field whose sign is the wearer's side (0: there is none)."""

HAIR_SIDE = "hair side"
"""The name of the side to which hair is parted, tied or swept; it belongs to the person, not to the outfit."""


@dataclass(frozen=True)
class Wardrobe:
    """Draws pairs of one split at one size.

    Args:
        split: `train`, `validation` or `test`.
        size: side of the pictures, a whole number of px from 64 to 1024.

    Raises:
        ValueError: if the split or the size is none of these.
    """

    split: str
    size: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"wardrobe has no split {self.split!r}; choose one of {', '.join(SPLITS)}.")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not SMALLEST <= self.size <= LARGEST:
            raise ValueError(f"size must be a whole number from {SMALLEST} to {LARGEST} px, not {self.size!r}.")

    @property
    def capacity(self) -> int:
        """How many different rows there are."""
        return SEEDS_PER_SPLIT

    @property
    def key(self) -> str:
        """What a row depends on besides its index."""
        return f"wardrobe {DRAWING} {LABELS} {self.split} {self.size}"

    def seed(self, index: int) -> int:
        """The seed of a row: no two rows of any split share one."""
        return SPLITS[self.split] + index

    def scene(self, index: int) -> tuple[Outfit, Person, Scene, int]:
        """What is drawn in a row, and the index whose outfit it wears."""
        owner = index - 1 if index % RUN == RUN - 1 else index
        outfit = sample_outfit(3 * self.seed(owner))
        person = sample_person(3 * self.seed(index) + 1, outfit.masculine)
        return outfit, person, sample_scene(3 * self.seed(index) + 2, outfit), owner

    def row(self, index: int) -> dict:
        """One pair with the columns of the schema."""
        outfit, person, scene, owner = self.scene(index)
        back, front = paint_pair(self.size, outfit, person, scene)
        back_masks, front_masks = back.masks(), front.masks()
        return {
            "item_id": f"wardrobe-{self.split}-{index:07d}",
            "group_id": f"wardrobe-{self.split}-outfit-{owner:07d}",
            "back": Image.fromarray(back.picture()),
            "front": Image.fromarray(front.picture()),
            "back_person": Image.fromarray(back_masks[PERSON]),
            "front_person": Image.fromarray(front_masks[PERSON]),
            "back_garments": Image.fromarray(back_masks[GARMENT]),
            "front_garments": Image.fromarray(front_masks[GARMENT]),
            "front_head": Image.fromarray(front_masks[HEAD]),
            "front_face": Image.fromarray(front_masks[FACE]),
            "attributes": describe(outfit, person, scene),
        }

    def other_side_fronts(self, index: int) -> dict[str, np.ndarray]:
        """The front of a row, drawn again for each one-sided thing with that thing alone on the other side.

        Returns:
            `size x size x 3` uint8 pictures by the thing's name. Hair is always among them; where it is symmetric its
            picture equals the true front.
        """
        outfit, person, scene, _ = self.scene(index)
        moved = {
            name: (replace(outfit, **{field: -getattr(outfit, field)}), person)
            for name, field in OUTFIT_SIDES.items()
            if getattr(outfit, field)
        }
        moved[HAIR_SIDE] = outfit, replace(person, hair_side=-person.hair_side)
        return {name: paint_pair(self.size, *worn, scene)[1].picture() for name, worn in moved.items()}

    def fronts_without(self, index: int) -> dict[str, np.ndarray]:
        """The front of a row, drawn again without its closure, collar, pockets and face, one at a time.

        Returns:
            `size x size x 3` uint8 pictures by the thing's name. A closure and a collar have the names of their kinds,
            those of `CLOSURES` and `COLLARS`.
        """
        outfit, person, scene, _ = self.scene(index)
        spec = outfit.top_spec
        kinds = {"face": "face"}
        if shows_closure(outfit):
            kinds["closure"] = spec.closure
        if spec.collar in COLLARS:
            kinds["collar"] = spec.collar
        if POCKETS.intersection(spec.details):
            kinds["pockets"] = "pockets"
        worn = self.size, outfit, person, scene
        return {kind: paint_pair(*worn, frozenset({thing}))[1].picture() for thing, kind in kinds.items()}


def describe(outfit: Outfit, person: Person, scene: Scene) -> dict[str, str | int | float | bool]:
    """The labels of a row; sides are the wearer's: "left", "right" or "none"."""
    sides = {-1: "right", 0: "none", 1: "left"}
    return {
        "masculine": person.masculine,
        "skin": person.skin_name,
        "hair": person.hair,
        "hair_color": person.hair_color,
        "hair_side": sides[person.hair_side] if STYLES[person.hair].has_side else "none",
        "beard": person.beard,
        "glasses": person.glasses,
        "height": round(person.height, 4),
        "width": round(person.width, 4),
        "top": outfit.top,
        "top_color": outfit.top_color,
        "top_pattern": outfit.top_cloth.pattern,
        "open": outfit.is_open,
        "inner_color": outfit.inner_color if outfit.top_spec.opens else "none",
        "tucked": outfit.tucked,
        "bottom": "none" if outfit.top_spec.dress else outfit.bottom,
        "bottom_color": "none" if outfit.top_spec.dress else outfit.bottom_color,
        "bottom_pattern": "none" if outfit.top_spec.dress else outfit.bottom_cloth.pattern,
        "belt": outfit.has_belt,
        "shoes": outfit.shoes,
        "bag": outfit.bag,
        "bag_side": sides[outfit.bag_side],
        "bare_shoulder": sides[outfit.bare_shoulder],
        "longer_hem": sides[(outfit.hem_drop > 0) - (outfit.hem_drop < 0)],
        "rolled_sleeve": sides[outfit.rolled_sleeve],
        "watch": sides[outfit.watch],
        "chest_print": outfit.chest_print,
        "back_print": outfit.back_print,
        "backdrop": scene.backdrop,
        "light_from": "left of the picture" if scene.light_side < 0 else "right of the picture",
    }
