"""From a picture to the tensor that enters the ControlNet: one copy, for training and for inference."""

import cv2
import numpy as np
import PIL.Image
import torch

CONDITIONINGS = ("canny", "rgb", "canny+rgb")
"""What may enter the ControlNet; the names' parts give the channels in their order."""

CHANNELS_PER_PART = 3

CANNY_LOW_THRESHOLD = 100
CANNY_HIGH_THRESHOLD = 200
"""Thresholds of the gradient's magnitude (absolute values of both directions added) in 8-bit grey levels."""


def conditioning_channels(conditioning: str) -> int:
    """Number of channels of a control tensor: 3 for `canny` and `rgb`, 6 for `canny+rgb`.

    Raises:
        ValueError: if `conditioning` is none of `CONDITIONINGS`.
    """
    return CHANNELS_PER_PART * len(conditioning_parts(conditioning))


def conditioning_parts(conditioning: str) -> list[str]:
    """What lies side by side in a control tensor, in the order of its channels: `["canny", "rgb"]` for `canny+rgb`.

    Raises:
        ValueError: if `conditioning` is none of `CONDITIONINGS`.
    """
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"conditioning is {conditioning!r}: choose one of {', '.join(CONDITIONINGS)}.")
    return conditioning.split("+")


def control_image(
    picture: PIL.Image.Image | np.ndarray,
    conditioning: str,
    mirror: bool,
    canny_low_threshold: int = CANNY_LOW_THRESHOLD,
    canny_high_threshold: int = CANNY_HIGH_THRESHOLD,
) -> torch.Tensor:
    """The control tensor of a picture that has already been put on the model's square.

    Edges are those of controlnet_aux's `CannyDetector`, without its resizing to multiples of 64 px. They are computed
    with OpenCV because importing controlnet_aux loads every other detector with it, which takes longer than an image.

    Args:
        picture (`PIL.Image.Image` or `numpy.ndarray`): RGB, or `(H, W, 3)` of `uint8`.
        conditioning (`str`): one of `CONDITIONINGS`.
        mirror (`bool`): whether the picture is flipped left-right before anything else is done.
        canny_low_threshold (`int`): edges weaker than this are dropped.
        canny_high_threshold (`int`): edges stronger than this are kept; those between only if connected to such a one.

    Returns:
        `torch.Tensor`: `(C, H, W)`, float32 in [0, 1]; three equal Canny channels, and R, G, B, in the name's order.

    Raises:
        ValueError: if `conditioning` is none of `CONDITIONINGS`, or the picture is not RGB of 8 bits.
    """
    parts = conditioning_parts(conditioning)
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"a control picture is made from uint8 RGB, not from {pixels.dtype} {pixels.shape}: use load_picture."
        )
    if mirror:
        pixels = pixels[:, ::-1]
    pixels = np.ascontiguousarray(pixels)
    channels = []
    for part in parts:
        if part == "canny":
            edges = cv2.Canny(pixels, canny_low_threshold, canny_high_threshold)
            channels.append(np.repeat(edges[:, :, None], CHANNELS_PER_PART, axis=2))
        else:
            channels.append(pixels)
    stacked = np.concatenate(channels, axis=2).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


def blank_control(conditioning: str, side: int) -> torch.Tensor:
    """The control tensor of a white picture, which shows no back: `C x side x side`; white has no edges."""
    return control_image(np.full((side, side, 3), 255, dtype=np.uint8), conditioning, mirror=False)


def control_picture(control: torch.Tensor, conditioning: str) -> PIL.Image.Image:
    """A control tensor `(C, H, W)` in [0, 1] as an RGB picture; several parts lie side by side in the name's order.

    Raises:
        ValueError: if `conditioning` is none of `CONDITIONINGS`, or the tensor has other channels than it.
    """
    if control.ndim != 3 or control.shape[0] != conditioning_channels(conditioning):
        raise ValueError(
            f"a {conditioning} control tensor has {conditioning_channels(conditioning)} x H x W values:"
            f" give one of that shape, not {tuple(control.shape)}."
        )
    side_by_side = torch.cat(control.detach().cpu().float().split(CHANNELS_PER_PART), dim=2)
    return PIL.Image.fromarray((side_by_side * 255).round().byte().permute(1, 2, 0).numpy())
