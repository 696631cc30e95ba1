"""LoRA adapters (Hu et al. 2021) beside a U-Net that stays as it is, by PEFT, as in diffusers' scripts."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from ..pipelines import BackToFrontPipeline

ATTENTION_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Linear layers that get an adapter: queries, keys, values and outputs of every attention."""


def add_lora(unet: UNet2DConditionModel, rank: int) -> nn.ModuleList:
    """Put an adapter beside every attention layer; at first they add nothing. Returns them: what is to learn."""
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION_LAYERS)
    )
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    return nn.ModuleList(part for layer in layers for part in (layer.lora_A, layer.lora_B))


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the adapters to `folder` as `pytorch_lora_weights.safetensors`, for `load_lora_weights`."""
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    BackToFrontPipeline.save_lora_weights(folder, unet_lora_layers=weights)
