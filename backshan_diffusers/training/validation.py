"""Validation: what the model in training makes of held-out pairs, as a sheet and as one number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..pictures import picture_sheet, save_picture
from ..pipelines import BackToFrontPipeline
from .caching import AT_ONCE, PairArrays, to_pixels

SHEET_ROWS = 8


@torch.no_grad()
def rebuild(vae: AutoencoderKL, pictures: np.ndarray) -> list[Image.Image]:
    """What the autoencoder gives back for `N x H x W x 3` uint8 pictures."""
    rebuilt = []
    for start in range(0, len(pictures), AT_ONCE):
        pixels = to_pixels(pictures[start : start + AT_ONCE]).to(vae.device)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        values = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte()
        rebuilt += [Image.fromarray(picture) for picture in values.permute(0, 2, 3, 1).cpu().numpy()]
    return rebuilt


def generate(
    pipeline: BackToFrontPipeline, pictures: np.ndarray, seed: int, prompts: torch.Tensor
) -> list[Image.Image]:
    """Fronts for `N x H x W x 3` uint8 backs, item i from seed `seed + i`.

    Args:
        prompts: `2 x T x E`; the embeddings of the prompt and of the empty one. The text encoder is not needed.
    """
    embeds = {"prompt_embeds": prompts[:1], "negative_prompt_embeds": prompts[1:]}
    fronts = []
    for start in range(0, len(pictures), AT_ONCE):
        backs = [Image.fromarray(picture) for picture in pictures[start : start + AT_ONCE]]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(backs))]
        fronts += pipeline(backs, generator=generators, **embeds).images
    return fronts


def write_sheet(pairs: PairArrays, results: list[Image.Image], path: Path) -> None:
    """Back | result | true front of the first held-out pairs."""
    rows = zip(pairs.backs, results, pairs.fronts, strict=False)
    pictures = [[Image.fromarray(back), result, Image.fromarray(front)] for back, result, front in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(picture_sheet(pictures), path)


def mean_l1(results: list[Image.Image], truths: np.ndarray) -> float:
    """Mean absolute difference over all pixels and channels, in [0, 1]."""
    made = np.stack([np.asarray(result) for result in results]).astype(np.float32)
    return float(np.abs(made - truths[: len(made)].astype(np.float32)).mean() / 255)
