"""A trainer of ControlNet on random pairs: the real step, without data on disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.objective import Objective
from backshan_diffusers.training.batches import StepSampler, noise_batch, timestep_batch
from backshan_diffusers.training.config import TrainingConfig
from backshan_diffusers.training.schedule import noise_schedule
from backshan_diffusers.training.stage_module import Batch
from backshan_diffusers.training.stages import ControlStage
from backshan_diffusers.training.trainer import StageTrainer

NOWHERE = "unused"
"""Folder of the trainer, which writes nothing unless it is told to train."""


def random_trainer(
    pipeline: BackToFrontPipeline, objective: Objective, train_unet: str | None, precision: str, **values
) -> StageTrainer:
    """A trainer whose `advance()` is one optimiser step.

    Args:
        pipeline: whose ControlNet learns, and whose U-Net learns or is frozen.
        objective: what is minimised.
        train_unet: as of `ControlStage`.
        precision: `no` or `bf16`.
        values: fields of `TrainingConfig`.
    """
    config = TrainingConfig(output_dir=NOWHERE, learning_rate=1e-5, **values)
    schedule = noise_schedule(pipeline.scheduler)
    stage = ControlStage(pipeline.controlnet, pipeline.unet, schedule, objective, train_unet)
    make_batch = random_batches(pipeline, objective, config.batch_size)
    accelerator = Accelerator(mixed_precision=precision)
    return StageTrainer(accelerator, stage, make_batch, config, "controlnet", Path(NOWHERE))


def random_batches(
    pipeline: BackToFrontPipeline, objective: Objective, size: int
) -> Callable[[int, StepSampler], Batch]:
    """Batches of noise of the shapes that `pipeline` trains on, every item an outfit of its own."""
    channels, width = pipeline.unet.config.in_channels, pipeline.unet.config.cross_attention_dim
    side, tokens = pipeline.controlnet.config.image_size, pipeline.tokenizer.model_max_length
    latent_side, steps = side // pipeline.vae_scale_factor, pipeline.scheduler.config.num_train_timesteps
    control = size, pipeline.controlnet.config.conditioning_channels, side, side

    def make_batch(number: int, sampler: StepSampler) -> Batch:
        generator, items = sampler.generator(number, "picture"), torch.arange(size) + number * size
        latents = torch.randn(size, channels, latent_side, latent_side, generator=generator)
        batch = {
            "latents": latents,
            "prompts": torch.randn(1, tokens, width, generator=generator).repeat(size, 1, 1),
            "back_control": torch.rand(control, generator=generator),
            "front_control": torch.rand(control, generator=generator),
            "groups": items,
            "items": items,
            "shown": torch.ones(size, dtype=torch.bool),
            "contrastive_weight": torch.tensor(objective.contrastive_weight),
            "timesteps": timestep_batch(size, steps, objective.timestep_shift, generator),
        }
        return batch | noise_batch(objective, latents, generator)

    return make_batch
