"""Small pipelines built from nothing: the classes of Stable Diffusion 1.5 at any size, with random weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..conditioning import CHANNELS_PER_PART, conditioning_parts
from ..models import BackshanControlNetModel
from ..pipelines import BackToFrontPipeline
from .config import TEXT_HEADS, ModelSize

OPPONENT_COLOURS = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]), dim=1)
"""Rows: brightness, red against green, yellow against blue; an orthonormal basis of R, G, B."""

OPPONENT_SCALES = (0.7, 3.0, 3.0)
"""Brings the three to about the same standard deviation in pictures in [-1, 1]."""

MEAN_BRIGHTNESS = 0.6
"""Mean of R, G and B in pictures in [-1, 1] of people before a light backdrop."""


def build_pipeline(size: ModelSize, seed: int, **recorded) -> BackToFrontPipeline:
    """Build a complete pipeline with random weights.

    Args:
        size: shape of every part.
        seed: seeds the weights; the caller's random state is left as it was.
        recorded: config fields of [`BackshanControlNetModel`] (`conditioning`, `mirror`, ...).
    """
    with seeded(seed):
        vae, unet = _build_vae(size), _build_unet(size)
        controlnet = build_controlnet(unet, size, seed, **recorded)
        tokenizer = _build_tokenizer()
        text_encoder = _build_text_encoder(size, tokenizer)
    return BackToFrontPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=_build_scheduler(),
    )


def build_controlnet(unet: UNet2DConditionModel, size: ModelSize, seed: int, **recorded) -> BackshanControlNetModel:
    """Copy the encoder of `unet` into a new ControlNet whose residuals are zero. Arguments as of `build_pipeline`."""
    with seeded(seed):
        controlnet = BackshanControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=size.condition_channels,
            image_size=size.image_size,
            **recorded,
        )
        _open_condition_embedding(controlnet)
    return controlnet


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's random numbers are those of `seed`; afterwards the caller's go on as if nothing had been."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _open_condition_embedding(controlnet: BackshanControlNetModel) -> None:
    """Let the condition embedding pass pictures on at their full strength, colours too, from the first step.

    Each of its convolutions is followed by SiLU. With the usual weights each halves what differs between two pictures,
    and the last one begins at zero; what is left of colour after six of them takes thousands of steps to be found.
    The zero convolutions that follow keep the residuals at zero all the same. Latents have a mean near 0 and one scale
    already, so nothing is done to them as it is to colours.
    """
    embedding = controlnet.controlnet_cond_embedding
    for convolution in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        nn.init.orthogonal_(convolution.weight, gain=nn.init.calculate_gain("relu"))
        nn.init.zeros_(convolution.bias)
    parts = conditioning_parts(controlnet.config.conditioning)
    if "rgb" in parts:
        start = parts.index("rgb") * CHANNELS_PER_PART
        kernels = embedding.conv_in.weight.data[:, start : start + CHANNELS_PER_PART]
        scaled = 2 * OPPONENT_COLOURS * torch.tensor(OPPONENT_SCALES)[:, None]  # pictures are in [0, 1]
        kernels.copy_(torch.einsum("oikl,ij->ojkl", kernels, scaled))
        embedding.conv_in.bias.data = -kernels.sum(dim=(1, 2, 3)) * (MEAN_BRIGHTNESS + 1) / 2


def _build_vae(size: ModelSize) -> AutoencoderKL:
    levels = len(size.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=size.norm_num_groups,
        sample_size=size.image_size,
        mid_block_add_attention=False,
    )
    branches = _zero_residual_branches(vae)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d) and module not in branches:
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    _see_in_opponent_colours(vae)
    # The encoder's last rows are the logarithms of the latents' variances: begin with almost no noise.
    vae.quant_conv.weight.data[size.latent_channels :] *= 0.01
    vae.quant_conv.bias.data[size.latent_channels :] = -6
    return vae


def _see_in_opponent_colours(vae: AutoencoderKL) -> None:
    """Let the first and the last convolution begin in opponent colours, centred and brought to one scale.

    Brightness varies twenty times as much as colour, and every norm on the way divides by the sum of both: a network
    that starts on R, G and B sees nearly no colour for its first thousand steps.
    """
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    scaled = OPPONENT_COLOURS * torch.tensor(OPPONENT_SCALES)[:, None]
    first.weight.data = torch.einsum("oikl,ij->ojkl", first.weight.data, scaled)
    first.bias.data = -first.weight.data.sum(dim=(1, 2, 3)) * MEAN_BRIGHTNESS
    last.weight.data = torch.einsum("oikl,oj->jikl", last.weight.data, OPPONENT_COLOURS) / 2
    last.bias.data.fill_(MEAN_BRIGHTNESS)


def _zero_residual_branches(model: nn.Module) -> set[nn.Module]:
    """Make every residual block the identity by zeroing its last convolution; returns the branches' convolutions.

    A signal then reaches the other end from the first step, which saves the first hundreds of them (as in the public
    code of "Diffusion Models Beat GANs", Dhariwal and Nichol 2021).
    """
    blocks = [module for module in model.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    return {convolution for block in blocks for convolution in (block.conv1, block.conv2)}


def _build_unet(size: ModelSize) -> UNet2DConditionModel:
    down_types = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in size.unet_attention)
    unet = UNet2DConditionModel(
        sample_size=size.image_size // size.vae_factor,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        down_block_types=down_types,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down_types)),
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        cross_attention_dim=size.text_width,
        attention_head_dim=size.attention_head_dim,
        norm_num_groups=size.norm_num_groups,
    )
    _zero_residual_branches(unet)
    return unet


def _build_text_encoder(size: ModelSize, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=size.text_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes only: no merges to learn, and nothing is out of vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _build_scheduler() -> DDIMScheduler:
    """DDIM with the noise schedule of Stable Diffusion, brought to zero signal at the last step.

    With a zero terminal signal a sample can start from pure noise and still reach any mean colour, which plain
    backdrops need (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed").
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
    )
