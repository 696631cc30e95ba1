"""The pipeline a run from a trained base begins with."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from ..models import BackshanControlNetModel
from ..pipelines import BackToFrontPipeline
from .config import ConfigError
from .scratch import seeded

CONDITION_FACTOR = 8
"""Side of a picture over the side of what the stock condition embedding makes of it."""


def open_base(name: str, seed: int, **recorded) -> BackToFrontPipeline:
    """Open a trained pipeline and give it a ControlNet of ours.

    One of ours keeps its weights and what it records. A stock one keeps its weights and is taken to read Canny edges,
    unless told otherwise. A pipeline without one gets a copy of its U-Net's encoder, which reads RGB, unless told
    otherwise.

    Args:
        name: pipeline folder or Hub repo id.
        seed: seeds weights that the base does not have.
        recorded: config fields of [`BackshanControlNetModel`] that win over what the base records.

    Raises:
        ConfigError: if there is no such pipeline, or its ControlNet cannot read pictures in that way.
    """
    try:
        if "controlnet" in BackToFrontPipeline.load_config(name):
            return _with_controlnet_of_ours(BackToFrontPipeline.from_pretrained(name), recorded)
        base = StableDiffusionPipeline.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        if base.vae_scale_factor != CONDITION_FACTOR:
            raise ValueError(
                f"its latents are 1/{base.vae_scale_factor} of a picture's side and a new ControlNet's condition"
                f" 1/{CONDITION_FACTOR}: give a pipeline that has a ControlNet."
            )
        with seeded(seed):
            controlnet = BackshanControlNetModel.from_unet(base.unet, **{"image_size": _native_size(base), **recorded})
        return BackToFrontPipeline(**base.components, controlnet=controlnet)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the base_model {name} cannot be used: {' '.join(str(error).split())}") from error


def _with_controlnet_of_ours(pipeline: BackToFrontPipeline, recorded: dict) -> BackToFrontPipeline:
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        recorded = {"image_size": _native_size(pipeline), **recorded}
    controlnet = BackshanControlNetModel.from_controlnet(pipeline.controlnet, **recorded)
    pipeline.register_modules(controlnet=controlnet)
    return pipeline


def _native_size(pipeline: StableDiffusionPipeline | BackToFrontPipeline) -> int:
    """Side in px of the pictures the U-Net was made for."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor
