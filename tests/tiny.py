"""Real classes at tiny size: what a test needs in place of a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.training.config import TrainingConfig
from backshan_diffusers.training.scratch import ModelSize, build_controlnet, build_pipeline
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


def wake(controlnet: BackshanControlNetModel) -> None:
    """Give the zero convolutions weights, so that the condition reaches the U-Net as in a trained model."""
    generator = torch.Generator().manual_seed(1)
    convolutions = [controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_mid_block]
    for convolution in [*convolutions, *controlnet.controlnet_down_blocks]:
        convolution.weight.data.normal_(std=0.3, generator=generator)


def tiny_config(folder: Path, **changes) -> TrainingConfig:
    """Four steps of every stage, a checkpoint at the second and the last."""
    values = {
        "model": replace(TINY),
        "train_pairs": 8,
        "validation_pairs": 2,
        "batch_size": 2,
        "max_steps": 4,
        "checkpoint_every": 2,
        "validate_every": 4,
        "log_every": 1,
        "crop_sizes": (32, 64),
        "warmup_steps": 1,
        "objective": "paper",
    }
    return TrainingConfig(output_dir=str(folder), **{**values, **changes})


def tiny_prior():
    """A stage on constant latents, and its batches."""
    pipeline = tiny_pipeline()
    generator = torch.Generator().manual_seed(2)
    batch = {
        "latents": torch.randn(2, 4, 8, 8, generator=generator),
        "prompts": torch.zeros(2, 7, 16),
        "items": torch.tensor([5, 3]),
    }
    return PriorStage(pipeline.unet, pipeline.scheduler), lambda step, sampler: batch


__all__ = [
    "TINY",
    "build_controlnet",
    "tiny_config",
    "tiny_controlnet",
    "tiny_pipeline",
    "tiny_prior",
    "tiny_unet",
    "wake",
]
