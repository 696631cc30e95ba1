"""What the autoencoder makes of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny

from ...conditioning import picture_latents
from .pairs import PairArrays
from .storage import cache_shards, fingerprint, key_of

AT_ONCE = 8
"""Pictures that go through a model together where nothing is trained: what fits where a training batch does."""


def cache_latents(
    pairs: PairArrays,
    vae: AutoencoderKL | AutoencoderTiny,
    folder: Path,
    accelerator: Accelerator,
    view: str = "fronts",
    flipped: bool = False,
) -> torch.Tensor:
    """Scaled VAE latents of every front, or back, computed once for these pairs and these weights.

    Args:
        pairs: `N` of them.
        vae: on the device that computes.
        folder: where caches live.
        accelerator: knows the processes; all of them call this function.
        view: `fronts` or `backs`.
        flipped: whether the pictures are flipped left-right before they are encoded, which flips no latents.

    Returns:
        `N x C x H x W` float32: the posterior's mean times the scaling factor.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    # no version of torch or diffusers: others round otherwise and no more, for which nobody waits for hours again
    key = key_of("latents-3", pairs.key, vae.config.scaling_factor, fingerprint(vae), view, flipped)

    def compute(pictures: np.ndarray) -> torch.Tensor:
        return encode(pictures[:, :, ::-1] if flipped else pictures, vae)

    return torch.cat(
        cache_shards(getattr(pairs, view), compute, folder, accelerator, key, "latents", f"latents of {view}")
    )


def encode(pictures: np.ndarray, vae: AutoencoderKL | AutoencoderTiny) -> torch.Tensor:
    """Scaled latents of `N x S x S x 3` uint8 pictures, on the CPU: `N x C x H x W` float32, the posterior's mean."""
    starts = range(0, len(pictures), AT_ONCE)
    batches = (to_pixels(pictures[start : start + AT_ONCE]).to(vae.device) for start in starts)
    return torch.cat([picture_latents(batch, vae).cpu() for batch in batches])


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """`B x H x W x 3` uint8 to `B x 3 x H x W` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
