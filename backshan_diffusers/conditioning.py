"""From a picture to the tensor that enters the ControlNet: one copy, for training and for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import PIL.Image
import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

CONDITIONINGS = ("canny", "rgb", "canny+rgb", "latents")
"""What may enter the ControlNet; the names' parts give the channels in their order."""

LATENTS = "latents"
"""The one that no picture gives by itself: it takes a VAE, see `picture_latents` and `control_latents`."""

CHANNELS_PER_PART = 3
"""Of all parts but latents."""

CANNY_LOW_THRESHOLD = 100
CANNY_HIGH_THRESHOLD = 200
"""Thresholds of the gradient's magnitude (absolute values of both directions added) in 8-bit grey levels."""


def conditioning_channels(conditioning: str, latent_channels: int) -> int:
    """Number of channels of a control tensor: 3 for `canny` and `rgb`, 6 for `canny+rgb`, the VAE's for `latents`.

    Args:
        conditioning (`str`): one of `CONDITIONINGS`.
        latent_channels (`int`): how many the VAE's latents have; the `in_channels` of U-Net and ControlNet.

    Raises:
        ValueError: if `conditioning` is none of `CONDITIONINGS`.
    """
    parts = conditioning_parts(conditioning)
    return latent_channels if parts == [LATENTS] else CHANNELS_PER_PART * len(parts)


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
        conditioning (`str`): one of `CONDITIONINGS` but `latents`, which a VAE makes of the `rgb` one.
        mirror (`bool`): whether the picture is flipped left-right before anything else is done.
        canny_low_threshold (`int`): edges weaker than this are dropped.
        canny_high_threshold (`int`): edges stronger than this are kept; those between only if connected to such a one.

    Returns:
        `torch.Tensor`: `(C, H, W)`, float32 in [0, 1]; three equal Canny channels, and R, G, B, in the name's order.

    Raises:
        ValueError: if `conditioning` is none of these, or the picture is not RGB of 8 bits.
    """
    parts = _picture_parts(conditioning)
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"a control picture is made from uint8 RGB, not from {pixels.dtype} {pixels.shape}: use load_picture."
        )
    if mirror:
        pixels = pixels[:, ::-1]
    edges = canny_edges(pixels, canny_low_threshold, canny_high_threshold) if "canny" in parts else None
    return control_tensor(pixels, edges, conditioning)


def canny_edges(pixels: np.ndarray, low_threshold: int, high_threshold: int) -> np.ndarray:
    """Edges of an `H x W x 3` uint8 picture, `H x W` uint8: 0, or 255 on an edge. Thresholds as of `control_image`."""
    return cv2.Canny(np.ascontiguousarray(pixels), low_threshold, high_threshold)


def control_tensor(pixels: np.ndarray, edges: np.ndarray | None, conditioning: str) -> torch.Tensor:
    """What `control_image` gives, of a picture whose edges are known.

    Args:
        pixels (`numpy.ndarray`): `(H, W, 3)` of `uint8`, flipped already if it is to be.
        edges (`numpy.ndarray`): `(H, W)` of `uint8`, its `canny_edges`; not needed where `conditioning` has none.
        conditioning (`str`): one of `CONDITIONINGS` but `latents`.
    """
    channels = []
    for part in _picture_parts(conditioning):
        if part == "canny":
            channels.append(np.repeat(edges[:, :, None], CHANNELS_PER_PART, axis=2))
        else:
            channels.append(pixels)
    stacked = np.concatenate(channels, axis=2).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


@torch.no_grad()
def picture_latents(pixels: torch.Tensor, vae: AutoencoderKL | AutoencoderTiny) -> torch.Tensor:
    """The latents of pictures: the posterior's mean times the scaling factor, `B x C x h x w` float32.

    A tiny autoencoder (TAESD), which imitates a large one, gives latents and no distribution of them.

    Args:
        pixels (`torch.Tensor`): `B x 3 x H x W` in [-1, 1], on the device on which the VAE computes.
        vae (`AutoencoderKL` or `AutoencoderTiny`): in any type of numbers.
    """
    encoded = vae.encode(pixels.to(vae.dtype))
    latents = encoded.latent_dist.mean if "latent_dist" in encoded else encoded.latents
    return latents.float() * vae.config.scaling_factor


def control_latents(latents: torch.Tensor, side: int) -> torch.Tensor:
    """The control tensor of `B x C x h x h` latents: each of them repeated over the pixels that it stands for.

    A picture's size is what the condition embedding of every ControlNet takes, so that stock classes read latents too.

    Args:
        latents (`torch.Tensor`): of pictures that were mirrored before they were encoded, if they have to be.
        side (`int`): of the pictures in px.

    Returns:
        `torch.Tensor`: `B x C x side x side`.
    """
    return torch.nn.functional.interpolate(latents, (side, side), mode="nearest")


def blank_control(conditioning: str, side: int, vae: AutoencoderKL | AutoencoderTiny) -> torch.Tensor:
    """The control tensor of a white picture, which shows no back: `C x side x side`; white has no edges."""
    if conditioning == LATENTS:
        white = torch.ones(1, 3, side, side, device=vae.device)
        return control_latents(picture_latents(white, vae), side)[0].cpu()
    return control_image(np.full((side, side, 3), 255, dtype=np.uint8), conditioning, mirror=False)


def control_picture(control: torch.Tensor, conditioning: str) -> PIL.Image.Image:
    """A control tensor `(C, H, W)` in [0, 1] as an RGB picture; several parts lie side by side in the name's order.

    Raises:
        ValueError: if `conditioning` is `latents` or none of `CONDITIONINGS`, or the tensor has other channels.
    """
    channels = CHANNELS_PER_PART * len(_picture_parts(conditioning))
    if control.ndim != 3 or control.shape[0] != channels:
        raise ValueError(
            f"a {conditioning} control tensor has {channels} x H x W values:"
            f" give one of that shape, not {tuple(control.shape)}."
        )
    side_by_side = torch.cat(control.detach().cpu().float().split(CHANNELS_PER_PART), dim=2)
    return PIL.Image.fromarray((side_by_side * 255).round().byte().permute(1, 2, 0).numpy())


def _picture_parts(conditioning: str) -> list[str]:
    """The parts of a control tensor that is a picture."""
    if conditioning == LATENTS:
        raise ValueError("latents are no picture: make one as rgb, and its latents with picture_latents and a VAE.")
    return conditioning_parts(conditioning)
