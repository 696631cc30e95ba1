"""Validation: what the model in training makes of held-out pairs, as a sheet and in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..data import Pairs
from ..data.checking import read_usable
from ..evaluation.metrics import colour_difference, ssim
from ..pictures import save_picture
from ..pipelines import BackToFrontPipeline
from ..sheets import picture_sheet
from .caching import AT_ONCE, PairArrays, to_pixels

SHEET_ROWS = 8


@torch.no_grad()
def rebuild(vae: AutoencoderKL, pictures: np.ndarray) -> list[Image.Image]:
    """What the autoencoder gives back for `N x H x W x 3` uint8 pictures."""
    rebuilt = []
    for start in range(0, len(pictures), AT_ONCE):
        pixels = to_pixels(pictures[start : start + AT_ONCE]).to(vae.device)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        values = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte()
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


def front_masks(rows: Pairs, processes: int) -> np.ndarray | None:
    """The people of the fronts that can be used, `N x S x S` uint8, as many and in the order of `cache_pairs`.

    Args:
        rows: what `load_pairs` gives.
        processes: how many read, at most.

    Returns:
        None if there is a front in which nobody is marked.
    """
    masks = [mask for made, _, _ in read_usable(rows, processes, _read_masks) for mask in made or ()]
    return None if any(mask is None for mask in masks) else np.stack(masks)


def _read_masks(rows: Sequence[dict]) -> list[np.ndarray | None]:
    masks = [row["front_person"] for row in rows]
    return [np.asarray(mask) if mask is not None and mask.getbbox() else None for mask in masks]


def score(results: list[Image.Image], truths: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
    """Means over the pictures: `l1` over all pixels, and two that are nearer to what an eye sees.

    These are `person_ssim` and `person_colour_difference`, over the people, or else `ssim` and `colour_difference`,
    over all pixels. They are the functions of [`~backshan_diffusers.evaluation`] of these names.

    Args:
        results: `N` pictures of `S x S` px.
        truths: `N` or more true ones, `S x S x 3` uint8 each.
        masks: as many, `S x S` uint8, or None.
    """
    prefix = "" if masks is None else "person_"
    if masks is None:
        masks = np.full(truths.shape[:3], 255, np.uint8)
    made = [np.asarray(result) for result in results]
    each = list(zip(made, np.asarray(truths), masks, strict=False))
    return {
        "l1": mean_l1(results, truths),
        f"{prefix}ssim": float(np.mean([ssim(*one) for one in each])),
        f"{prefix}colour_difference": float(np.mean([colour_difference(*one) for one in each])),
    }


def mean_l1(results: list[Image.Image], truths: np.ndarray) -> float:
    """Mean absolute difference over all pixels and channels, in [0, 1]."""
    made = np.stack([np.asarray(result) for result in results]).astype(np.float32)
    return float(np.abs(made - truths[: len(made)].astype(np.float32)).mean() / 255)
