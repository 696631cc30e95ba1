"""The pipeline a run from a trained base begins with."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from transformers import CLIPTextModel

from ..folder_check import ADAPTERS, check_folder, records_conditioning
from ..models import BackshanControlNetModel
from ..pipelines import BackToFrontPipeline
from ..repo_ids import may_be_repo_id
from .config import ConfigError, check
from .schedule import noise_schedule
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
    _check_place("base_model", name)
    if controlnet is not None:
        _check_place("controlnet", controlnet)
    check(
        not Path(name, ADAPTERS).exists(),
        f"the base_model {name} holds a LoRA adapter beside its U-Net: open it with diffusers, call load_lora_weights"
        " and fuse_lora, save the pipeline to a new folder, and give that.",
    )
    try:
        if Path(name).is_dir():
            check_folder(Path(name), {"controlnet"})
        given = {} if controlnet is None else {"controlnet": _open_controlnet(controlnet)}
        has_controlnet = controlnet is not None or "controlnet" in BackToFrontPipeline.load_config(name)
        given["text_encoder"] = _open_text_encoder(name)
        if has_controlnet:
            return _with_controlnet_of_ours(BackToFrontPipeline.from_pretrained(name, **given), recorded)
        base = StableDiffusionPipeline.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **given)
        _check_base(base)
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


def _check_place(field: str, name: str) -> None:
    """Refuse a folder that is not there, for which the Hub would be asked in vain."""
    place = Path(name)
    check(
        place.is_dir() or (may_be_repo_id(name) and not place.parent.exists()),
        f"the {field} {name} is no folder: run the config that writes it first, or give another {field}.",
    )


def _open_controlnet(name: str) -> ControlNetModel:
    is_ours = records_conditioning(ControlNetModel.load_config(name))
    kind = BackshanControlNetModel if is_ours else ControlNetModel
    return kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True)


def _open_text_encoder(name: str) -> CLIPTextModel:
    """The pipeline's text encoder, opened by itself: in a pipeline weights that its file lacks are drawn anew."""
    opened, found = CLIPTextModel.from_pretrained(
        name, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"its text_encoder has no weight {missing[0]}: copy or download it again.")
    return opened


def _with_controlnet_of_ours(pipeline: BackToFrontPipeline, recorded: dict) -> BackToFrontPipeline:
    _check_base(pipeline)
    _check_fit(pipeline)
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        recorded = {"image_size": _native_size(pipeline), **recorded}
    controlnet = BackshanControlNetModel.from_controlnet(pipeline.controlnet, **recorded)
    pipeline.register_modules(controlnet=controlnet)
    return pipeline


def _check_base(pipeline: StableDiffusionPipeline | BackToFrontPipeline) -> None:
    """Refuse what is no Stable Diffusion: noise of betas, a U-Net that reads noised latents and a text alone, and
    predictions from which a picture follows at every timestep."""
    for name, part in pipeline.components.items():
        for weight, value in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if value.is_meta:  # what diffusers leaves where a file has no such weight
                raise ValueError(f"its {name} has no weight {weight}: copy or download it again.")
    schedule, unet = pipeline.scheduler.config, pipeline.unet.config
    if "beta_schedule" not in schedule or "beta_schedule" in schedule.get("_use_default_values", ()):
        raise ValueError("its scheduler_config.json names no beta_schedule, so that nobody knows how noise is added.")
    noise_schedule(pipeline.scheduler)
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet[name] is not None:
            raise ValueError(f"its U-Net has the {name} {unet[name]}: give one that needs no more than a text.")
    if unet.sample_size is None:
        raise ValueError(
            "its U-Net records no sample_size: write into its config the side of the latents it was made for."
        )
    for ours, theirs, part, size in (
        ("in_channels", "latent_channels", "vae", pipeline.vae.config.latent_channels),
        ("out_channels", "latent_channels", "vae", pipeline.vae.config.latent_channels),
        ("cross_attention_dim", "hidden_size", "text_encoder", pipeline.text_encoder.config.hidden_size),
    ):
        if unet[ours] != size:
            raise ValueError(
                f"its U-Net has {ours} {unet[ours]} and its {part} {theirs} {size}: give parts that were made for each"
                " other."
            )


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
