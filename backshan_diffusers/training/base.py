"""The pipeline a run from a trained base begins with."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from ..models import BackshanControlNetModel
from ..models.controlnet_backshan import records_conditioning
from ..pipelines import BackToFrontPipeline
from .config import ConfigError, check
from .scratch import seeded

CONDITION_FACTOR = 8
"""Side of a picture over the side of what the stock condition embedding makes of it."""


def open_base(name: str, seed: int, controlnet: str | None = None, **recorded) -> BackToFrontPipeline:
    """Open a trained pipeline and give it a ControlNet of ours.

    One of ours keeps its weights and what it records. A stock one keeps its weights and is taken to read Canny edges,
    unless told otherwise. A pipeline without one gets a copy of its U-Net's encoder, which reads RGB, unless told
    otherwise.

    Args:
        name: pipeline folder or Hub repo id.
        seed: seeds weights that neither has.
        controlnet: folder or Hub repo id of a ControlNet in place of the pipeline's own.
        recorded: config fields of [`BackshanControlNetModel`] that win over what the ControlNet records.

    Raises:
        ConfigError: if there is no such pipeline or ControlNet, they do not fit together, or the ControlNet cannot
            read pictures in that way.
    """
    check(
        not Path(name, LORA_WEIGHT_NAME_SAFE).exists(),
        f"the base_model {name} holds a LoRA adapter beside its U-Net: open it with diffusers, call load_lora_weights"
        " and fuse_lora, save the pipeline to a new folder, and give that.",
    )
    try:
        given = {} if controlnet is None else {"controlnet": _open_controlnet(controlnet)}
        if given or "controlnet" in BackToFrontPipeline.load_config(name):
            return _with_controlnet_of_ours(BackToFrontPipeline.from_pretrained(name, **given), recorded)
        base = StableDiffusionPipeline.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        if base.vae_scale_factor != CONDITION_FACTOR:
            raise ValueError(
                f"its latents are 1/{base.vae_scale_factor} of a picture's side and a new ControlNet's condition"
                f" 1/{CONDITION_FACTOR}: give a pipeline that has a ControlNet."
            )
        with seeded(seed):
            copied = BackshanControlNetModel.from_unet(base.unet, **{"image_size": _native_size(base), **recorded})
        return BackToFrontPipeline(**base.components, controlnet=copied)
    except (OSError, ValueError) as error:
        used = name if controlnet is None else f"{name} with the controlnet {controlnet}"
        raise ConfigError(f"the base_model {used} cannot be used: {' '.join(str(error).split())}") from error


def _open_controlnet(name: str) -> ControlNetModel:
    is_ours = records_conditioning(ControlNetModel.load_config(name))
    kind = BackshanControlNetModel if is_ours else ControlNetModel
    return kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True)


def _with_controlnet_of_ours(pipeline: BackToFrontPipeline, recorded: dict) -> BackToFrontPipeline:
    _check_fit(pipeline)
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        recorded = {"image_size": _native_size(pipeline), **recorded}
    controlnet = BackshanControlNetModel.from_controlnet(pipeline.controlnet, **recorded)
    pipeline.register_modules(controlnet=controlnet)
    return pipeline


def _check_fit(pipeline: BackToFrontPipeline) -> None:
    """Refuse a ControlNet whose residuals the U-Net could not add, or whose condition is not as large as a latent."""
    controlnet, unet = pipeline.controlnet.config, pipeline.unet.config
    for name in ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim"):
        if controlnet[name] != unet[name]:
            raise ValueError(
                f"the ControlNet has {name} {controlnet[name]} and the U-Net {unet[name]}:"
                " give one that was made for the other."
            )
    factor = 2 ** (len(controlnet["conditioning_embedding_out_channels"]) - 1)
    if factor != pipeline.vae_scale_factor:
        raise ValueError(
            f"the ControlNet reads pictures at 1/{factor} of their side and latents have"
            f" 1/{pipeline.vae_scale_factor}: give one that was made for the other."
        )


def _native_size(pipeline: StableDiffusionPipeline | BackToFrontPipeline) -> int:
    """Side in px of the pictures the U-Net was made for."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor
