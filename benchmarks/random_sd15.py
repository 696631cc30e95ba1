"""Stable Diffusion 1.5 in shape, with random weights: what a step costs does not depend on what they are."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from backshan_diffusers import MINI, BackshanControlNetModel, BackToFrontPipeline


def random_sd15(image_size: int) -> BackToFrontPipeline:
    """A pipeline in float32 whose ControlNet records `image_size` px. The tokenizer is the embedded model's."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **blocks)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
            projection_dim=768,
        )
    )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return BackToFrontPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=BackToFrontPipeline.from_pretrained(MINI).tokenizer,
        unet=unet,
        controlnet=BackshanControlNetModel.from_unet(unet, image_size=image_size),
        scheduler=scheduler,
    )
