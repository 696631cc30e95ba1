"""Real classes at tiny size: what a test needs in place of a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.training.augmentation import Augmentation
from backshan_diffusers.training.batches import StepPairs, StepSampler
from backshan_diffusers.training.caching import PairArrays
from backshan_diffusers.training.config import ModelSize, TrainingConfig
from backshan_diffusers.training.scratch import build_controlnet, build_pipeline
from backshan_diffusers.training.stages import PriorStage

TINY = ModelSize(
    image_size=64,
    latent_channels=4,
    vae_channels=(8, 8, 8, 8),
    unet_channels=(8, 16),
    unet_attention=(False, True),
    condition_channels=(4, 4, 4, 8),
    text_width=16,
    text_layers=1,
    attention_head_dim=2,
    norm_num_groups=4,
)


def tiny_pipeline(conditioning: str = "rgb", seed: int = 0, zero_residuals: bool = False, **recorded):
    """A pipeline of about 60,000 weights on 64 px pictures.

    Args:
        conditioning: what the ControlNet reads.
        seed: seeds the weights.
        zero_residuals: leave the ControlNet's output convolutions at zero, as they are before training.
        recorded: further config fields of the ControlNet.
    """
    recorded = {"default_guidance_scale": 1.0, "default_num_inference_steps": 3} | recorded
    pipeline: BackToFrontPipeline = build_pipeline(TINY, seed, conditioning=conditioning, **recorded)
    pipeline.set_progress_bar_config(disable=True)
    if not zero_residuals:
        wake(pipeline.controlnet)
    return pipeline


def tiny_controlnet(conditioning: str = "rgb", seed: int = 0, zero_residuals: bool = False, **recorded):
    """The ControlNet of [`tiny_pipeline`] alone."""
    return tiny_pipeline(conditioning, seed, zero_residuals, **recorded).controlnet


def tiny_unet(seed: int = 0):
    """The U-Net of [`tiny_pipeline`] alone."""
    return tiny_pipeline(seed=seed).unet


def tiny_autoencoder() -> AutoencoderTiny:
    """What a user puts in the place of a pipeline's autoencoder to save time: the class of TAESD."""
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    return AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)


def tiny_ip_adapter(pipeline: BackToFrontPipeline):
    """The weights of an IP-Adapter for a pipeline, as `load_ip_adapter` takes them, and its image encoder."""
    width, clip_width, tokens = pipeline.unet.config.cross_attention_dim, 24, 4
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=clip_width,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    projection = {
        "proj.weight": torch.randn(tokens * width, clip_width, generator=generator),
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers = {}
    modules = dict(pipeline.unet.named_modules())
    names = [name.removesuffix(".processor") for name in pipeline.unet.attn_processors if "attn2" in name]
    for i, name in enumerate(names):
        for kind in ("to_k", "to_v"):
            out_features = getattr(modules[name], kind).out_features
            layers[f"{2 * i + 1}.{kind}_ip.weight"] = torch.randn(out_features, width, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(vision).eval()
    return {"image_proj": projection, "ip_adapter": layers}, encoder


def wake(controlnet: BackshanControlNetModel) -> None:
    """Give the zero convolutions weights, so that the condition reaches the U-Net as in a trained model."""
    generator = torch.Generator().manual_seed(1)
    convolutions = [controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_mid_block]
    for convolution in [*convolutions, *controlnet.controlnet_down_blocks]:
        convolution.weight.data.normal_(std=0.3, generator=generator)


def pair_arrays(count: int = 8, size: int = 64) -> PairArrays:
    """Pairs of noise; two of them share an outfit."""
    random = np.random.RandomState(0)
    backs, fronts = (random.randint(0, 255, (count, size, size, 3)).astype(np.uint8) for _ in range(2))
    return PairArrays(backs, fronts, np.arange(count) // 2, "key")


def step_pairs(pairs: PairArrays, indices: np.ndarray, step: int = 0, **augmentation) -> StepPairs:
    """Some of the pairs, changed as the fields of `Augmentation` say."""
    return StepPairs(pairs, indices, Augmentation(**augmentation), StepSampler(0, "joint"), step)


def tiny_config(folder: Path, **changes) -> TrainingConfig:
    """Four steps of every stage, a checkpoint at the second and the last."""
    values = {
        "report_to": "none",
        "model": replace(TINY),
        "train_pairs": 8,
        "validation_pairs": 2,
        "batch_size": 2,
        "max_steps": 4,
        "checkpoint_every": 2,
        "validate_every": 4,
        "log_every": 1,
        "probe_every": 3,
        "crop_sizes": (32, 64),
        "warmup_steps": 1,
        "objective": {"preset": "paper"},
    }
    return TrainingConfig(output_dir=str(folder), **{**values, **changes})


def prior_batch(latents: torch.Tensor) -> dict:
    """A batch of two given latents."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    return {
        "latents": latents,
        "prompts": torch.zeros(2, 7, 16),
        "noise": noise,
        "timesteps": torch.tensor([300, 700]),
        "items": torch.tensor([5, 3]),
    }


def tiny_prior():
    """A stage on constant latents, and its batches."""
    pipeline = tiny_pipeline()
    generator = torch.Generator().manual_seed(2)
    batch = prior_batch(torch.randn(2, 4, 8, 8, generator=generator))
    return PriorStage(pipeline.unet, pipeline.scheduler), lambda step, sampler: batch


__all__ = [
    "TINY",
    "build_controlnet",
    "pair_arrays",
    "prior_batch",
    "step_pairs",
    "tiny_autoencoder",
    "tiny_config",
    "tiny_controlnet",
    "tiny_pipeline",
    "tiny_prior",
    "tiny_unet",
    "wake",
]
