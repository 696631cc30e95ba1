"""Random changes to pairs that leave them pairs: what happens to one view happens to the other."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

LARGEST_JITTER = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
LARGEST_MOVEMENT = {"rotation": 45.0, "translation": 0.5, "scale": 0.5}
"""What may be asked for at most: shares, but for hue, in turns, and rotation, in degrees."""

MID_GREY = 127.5
"""What a change of contrast leaves as it is. It is not a picture's own mean, which differs between two views."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a pair, each by itself; nothing by default.

    Args:
        flip: share of pairs of which both views are flipped left-right.
        colour_jitter: largest change of brightness, contrast and saturation, as shares, and of hue, in turns. Empty:
            none.
        affine: largest rotation in degrees, largest translation as a share of the side, and largest change of scale as
            a share. Empty: none.
        affine_shared: whether the back moves as the front does. It lies on the front when it is flipped, so that a
            front shifted to the right belongs to a back shifted to the left.
    """

    flip: float = 0.0
    colour_jitter: tuple[float, ...] = ()
    affine: tuple[float, ...] = ()
    affine_shared: bool = True

    def __post_init__(self):
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}: give a share from 0 to 1.")
        for name, largest in {"colour_jitter": LARGEST_JITTER, "affine": LARGEST_MOVEMENT}.items():
            values = getattr(self, name)
            if values and (
                len(values) != len(largest) or not all(0 <= v <= top for v, top in zip(values, largest.values()))
            ):
                wanted = ", ".join(f"{part} from 0 to {top:g}" for part, top in largest.items())
                raise ValueError(f"{name} is {list(values)}: give {wanted}, or an empty list.")

    @property
    def changes_pixels(self) -> bool:
        """Whether fronts become pictures whose latents cannot be computed once: by anything but a flip."""
        return any(self.colour_jitter) or any(self.affine)

    def colour_maps(self, count: int, generator: torch.Generator) -> np.ndarray:
        """Changes of colours for `count` pairs, one for both views: `count x 3 x 4`, for [`recolour`]."""
        return np.stack([_colour_map(*draw) for draw in _draws(generator, count, 4) * self.colour_jitter])

    def moves(self, count: int, side: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Movements of `count` backs and as many fronts of `side` px: `count x 2 x 3` each, for [`move_picture`]."""
        rotation, translation, scale = self.affine
        backs, fronts = _draws(generator, 2, count, 4) * [rotation, translation, translation, scale]
        if self.affine_shared:
            backs = fronts * [-1, -1, 1, 1]
        backs, fronts = (np.stack([_move(*draw, side) for draw in draws]) for draws in (backs, fronts))
        return backs, fronts


def recolour(picture: np.ndarray, colour_map: np.ndarray) -> np.ndarray:
    """`S x S x 3` uint8 after a change of colours."""
    return cv2.transform(picture, colour_map)


def move_picture(picture: np.ndarray, move: np.ndarray) -> np.ndarray:
    """`S x S x 3` uint8 after a movement; what comes in from outside continues its border."""
    return cv2.warpAffine(picture, move, picture.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def move_mask(mask: np.ndarray, move: np.ndarray) -> np.ndarray:
    """`S x S` bool after a movement: every pixel of which a part is inside; outside there is nothing."""
    return cv2.warpAffine(mask * np.uint8(255), move, mask.shape[::-1]) > 0


def _draws(generator: torch.Generator, *shape: int) -> np.ndarray:
    """Numbers between -1 and 1."""
    return torch.rand(shape, generator=generator, dtype=torch.float64).numpy() * 2 - 1


# x' = R_h S_s (c (b x - g) + g), g mid grey, S_s = a a^T + s (1 - a a^T), R_h a rotation around a = (1, 1, 1) / sqrt 3
def _colour_map(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """A change of colours as a `3 x 4` matrix for RGB in 8-bit levels: one map, so that cloth stays of one colour.

    As in the augmentation of StyleGAN2-ADA (Karras et al. 2020), with factors instead of shifts for brightness.

    Args:
        brightness, contrast, saturation: changes of b, c and s, which are 1 at rest.
        hue: h in turns.
    """
    axis, angle = np.full(3, 3**-0.5), 2 * np.pi * hue
    greys = np.outer(axis, axis)
    colours = np.eye(3) - greys
    turned = np.cos(angle) * colours + np.sin(angle) * np.cross(np.eye(3), axis)
    matrix = (greys + (1 + saturation) * turned) * (1 + contrast) * (1 + brightness)
    return np.hstack([matrix, np.full((3, 1), -contrast * MID_GREY)])


def _move(rotation: float, right: float, down: float, scale: float, side: int) -> np.ndarray:
    """A rotation around the middle, a shift and a change of scale as OpenCV's `2 x 3` matrix.

    Args:
        rotation: in degrees, counter-clockwise.
        right, down: shares of the side.
        scale: change of the factor, which is 1 at rest.
        side: in px.
    """
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), rotation, 1 + scale)
    matrix[:, 2] += side * right, side * down
    return matrix
