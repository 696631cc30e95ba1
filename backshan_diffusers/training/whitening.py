"""Latents of unit covariance, by a change of the autoencoder's two 1 x 1 convolutions."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from .caching import to_pixels

SMALLEST_SHARE = 1e-8
"""Of the largest variance of a latent direction: one with less holds rounding errors only."""

ENCODED_AT_ONCE = 32


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Make the latent channels of `pictures` uncorrelated, of mean 0 and variance 1. Rebuilt pictures stay the same.

    The mean squared error of a diffusion model counts a latent channel by its variance. In the latents of an
    autoencoder brightness varies several times as much as colour, so that colour is learned last; here every direction
    counts alike. With mu and S the mean and the covariance of the posterior's means, z' = S^(-1/2) (z - mu) goes into
    `quant_conv` and its inverse into `post_quant_conv`. The posterior's variance becomes one constant of each channel.

    Args:
        vae: changed in place, its `scaling_factor` becomes 1.
        pictures: `N x H x W x 3` uint8, what the statistics are taken from.

    Raises:
        FloatingPointError: if a direction holds nothing, or more noise than anything else, which would be blown up.
    """
    means, variance = _moments(vae, pictures)
    mu, covariance = means.mean(0), torch.cov(means.T)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors @ values.rsqrt().diag() @ vectors.T
    noise = whiten.square() @ variance  # nan where the smallest values are below 0 by rounding
    if values.min() < SMALLEST_SHARE * values.max() or noise.max() > 1:
        raise FloatingPointError(
            "the autoencoder leaves a latent direction empty: train it longer, with a smaller kl_weight, or with fewer"
            " latent_channels."
        )
    restore = vectors @ values.sqrt().diag() @ vectors.T

    channels, encode, decode = len(mu), vae.quant_conv, vae.post_quant_conv
    weight, bias = encode.weight[:channels, :, 0, 0].cpu().double(), encode.bias[:channels].cpu().double()
    encode.weight[:channels] = (whiten @ weight)[:, :, None, None].to(encode.weight)
    encode.bias[:channels] = (whiten @ (bias - mu)).to(encode.bias)
    encode.weight[channels:] = 0
    encode.bias[channels:] = noise.log().to(encode.bias)
    weight = decode.weight[:, :, 0, 0].cpu().double()
    decode.weight.copy_((weight @ restore)[:, :, None, None])
    decode.bias.add_((weight @ mu).to(decode.bias))
    vae.register_to_config(scaling_factor=1.0)


def _moments(vae: AutoencoderKL, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means of every position, `P x C`, and the mean posterior variance of each channel, both float64."""
    means, variances = [], []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        posterior = vae.encode(to_pixels(pictures[start : start + ENCODED_AT_ONCE]).to(vae.device)).latent_dist
        means.append(posterior.mean.movedim(1, -1).flatten(0, -2).cpu().double())
        variances.append(posterior.var.movedim(1, -1).flatten(0, -2).cpu().double())
    return torch.cat(means), torch.cat(variances).mean(0)
