"""What each stage trains and on which loss: one module for each, so that any engine can wrap it as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from torch import nn

from ..models import BackshanControlNetModel
from ..objective import Objective, backshan_loss, noise_mse
from .config import ConfigError
from .scratch import OPPONENT_COLOURS

Batch = dict[str, torch.Tensor]


class StageModule(nn.Module):
    """A loss with the models it trains.

    Subclasses fill `trained` (name of the pipeline component -> module) and implement `forward(batch, generator)`,
    which returns scalars of which `loss` is minimised. Frozen models are held outside of the module tree, so that they
    are neither wrapped nor saved.
    """

    def __init__(self, trained: dict[str, nn.Module], frozen: dict[str, nn.Module]):
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        object.__setattr__(self, "frozen", frozen)
        for model in trained.values():
            model.requires_grad_(True).train()
        for model in frozen.values():
            model.requires_grad_(False).eval()

    def component(self, name: str) -> nn.Module:
        """The model of that name, trained or frozen."""
        return self.trained[name] if name in self.trained else self.frozen[name]

    def named_trained(self) -> Iterator[tuple[str, nn.Module]]:
        """The trained models by component name."""
        yield from self.trained.items()


class AutoencoderStage(StageModule):
    """Reconstruction: mean |c - c_hat| + w_e mean |dc - dc_hat| + w_k KL.

    c is the picture in opponent colours, of which those without brightness weigh `colour_weight` times; dc are
    differences of neighbouring pixels, which keep edges sharp; KL is per latent value.

    Args:
        vae: learns as a whole, or from the latents on.
        latents_stay: whether only the decoder learns, so that whatever was trained on the latents still fits them.
        kl_weight, edge_weight, colour_weight: as above.
    """

    def __init__(
        self, vae: AutoencoderKL, latents_stay: bool, kl_weight: float, edge_weight: float, colour_weight: float
    ):
        super().__init__({"vae": vae}, {})
        if latents_stay:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        self.kl_weight, self.edge_weight = kl_weight, edge_weight
        self.register_buffer(
            "colours", OPPONENT_COLOURS * torch.tensor([1, colour_weight, colour_weight])[:, None], persistent=False
        )

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pixels = batch["pixels"]
        posterior = self.trained["vae"].encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        rebuilt = self.trained["vae"].decode(posterior.mean + posterior.std * noise).sample
        error = torch.einsum("dc,nchw->ndhw", self.colours, rebuilt - pixels)
        l1 = error.abs().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        return {"loss": loss, "l1": (rebuilt - pixels).abs().mean(), "kl": kl}


class PriorStage(StageModule):
    """The U-Net on front latents alone, without a condition."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler):
        super().__init__({"unet": unet}, {})
        self.scheduler = scheduler

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        noised, timesteps, target = diffuse(self.scheduler, batch["latents"], generator)
        prediction = self.trained["unet"](noised, timesteps, batch["prompts"]).sample
        mse = noise_mse(prediction, target, batch.get("weights"))
        return {"loss": mse, "mse": mse}


class ControlStage(StageModule):
    """ControlNet on pairs, with the U-Net frozen (`controlnet`) or learning too (`joint`).

    The backs, and where the objective compares them the fronts as well, go through ControlNet as one batch. Both see
    the same noised front latents, as the method's figures show.
    """

    def __init__(
        self,
        controlnet: BackshanControlNetModel,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        objective: Objective,
        train_unet: bool,
    ):
        models = {"controlnet": controlnet, "unet": unet}
        names = ("controlnet", "unet") if train_unet else ("controlnet",)
        super().__init__({n: models[n] for n in names}, {n: m for n, m in models.items() if n not in names})
        self.scheduler, self.objective = scheduler, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        noised, timesteps, target = diffuse(self.scheduler, batch["latents"], generator)
        conditions = [batch["back_control"]]
        if self.objective.contrastive_weight:
            conditions.append(batch["front_control"])
        copies = len(conditions)
        residuals = self.trained["controlnet"](
            noised.repeat(copies, 1, 1, 1),
            timesteps.repeat(copies),
            batch["prompts"].repeat(copies, 1, 1),
            torch.cat(conditions),
        ).split([len(noised)] * copies)
        prediction = self.component("unet")(
            noised,
            timesteps,
            batch["prompts"],
            down_block_additional_residuals=residuals[0].down_block_res_samples,
            mid_block_additional_residual=residuals[0].mid_block_res_sample,
        ).sample
        features = [BackshanControlNetModel.control_features(part) for part in residuals] if copies == 2 else []
        pairs = {"group_ids": batch["groups"], "shown": batch["shown"]} if features else {}
        return backshan_loss(self.objective, prediction, target, *features, **pairs, weights=batch.get("weights"))


def noise_schedule(scheduler: SchedulerMixin) -> DDIMScheduler:
    """The schedule a pipeline was made for, in a form that adds noise, whatever sampler the pipeline comes with.

    Raises:
        ConfigError: if the U-Net predicts neither noise nor velocity.
    """
    schedule = DDIMScheduler.from_config(scheduler.config)
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"the U-Net predicts {schedule.config.prediction_type}: begin from one that predicts epsilon or velocity."
        )
    return schedule


def diffuse(
    scheduler: DDIMScheduler, latents: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise a batch at timesteps spread evenly over the schedule, which lowers the loss's variance.

    Args:
        latents: `B x C x H x W`, scaled.
        generator: a CPU generator; it fixes noise and timesteps.

    Returns:
        The noised latents, their timesteps (`B`), and what the U-Net has to predict from them.
    """
    steps, size = scheduler.config.num_train_timesteps, len(latents)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    position = (torch.rand(1, generator=generator) + torch.randperm(size, generator=generator) / size) % 1
    timesteps = (position * steps).long().to(latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        return noised, timesteps, scheduler.get_velocity(latents, noise, timesteps)
    return noised, timesteps, noise
