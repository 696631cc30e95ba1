"""The noise schedule a U-Net was made for, and what its predictions stand for."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SchedulerMixin

from .config import ConfigError
from .stage_module import Batch


def noise_schedule(scheduler: SchedulerMixin) -> DDIMScheduler:
    """The schedule a pipeline was made for, in a form that adds noise, whatever sampler the pipeline comes with.

    Raises:
        ConfigError: if the U-Net predicts neither noise nor velocity, or noise where nothing else is left.
    """
    schedule = DDIMScheduler.from_config(scheduler.config)
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"the U-Net predicts {schedule.config.prediction_type}: begin from one that predicts epsilon or velocity."
        )
    if schedule.config.prediction_type == "epsilon" and not schedule.alphas_cumprod[-1]:
        raise ConfigError(
            "the U-Net predicts noise and its schedule ends in noise alone, where no picture follows from that: set"
            " rescale_betas_zero_snr in scheduler_config.json to false."
        )
    return schedule


def denoising_target(scheduler: DDIMScheduler, batch: Batch) -> torch.Tensor:
    """What the U-Net has to predict from the noised `latents` of a batch: its `noise`, or the velocity."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(batch["latents"], batch["noise"], batch["timesteps"])
    return batch["noise"]


def alpha_bars(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_t squared of `B` timesteps."""
    return scheduler.alphas_cumprod.to(timesteps.device)[timesteps]


def predicted_latents(
    scheduler: DDIMScheduler, noised: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The latents that a prediction of the U-Net stands for, `B x C x h x h` float32."""
    kept = alpha_bars(scheduler, timesteps)[:, None, None, None]
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        return signal * noised - noise * prediction.float()
    return (noised - noise * prediction.float()) / signal
