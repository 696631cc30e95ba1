"""How a discriminator judges predicted fronts, and how hard its verdict pulls at what predicted them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn.grad import conv2d_weight

from ..objective import bounded_adversarial_weight, relativistic_loss, smoothness_penalty
from .batches import DISTURBED
from .discriminator import FrontDiscriminator
from .schedule import alpha_bars, predicted_latents
from .stage_module import Batch, Terms

FLOAT16_SCALE = 2.0**10
"""How many times as large slopes are on their way through the discriminator and the autoencoder, which may be in half
precision and lose small ones."""


class Adversary:
    """Judges what a U-Net predicts. The models belong to a stage, which trains them or not.

    Args:
        discriminator: learns to tell predicted fronts from true ones.
        vae: decodes the predicted fronts.
        unet: whose predictions they are.
        scheduler: the U-Net's noise schedule.
        pull: c of `bounded_adversarial_weight`.
    """

    def __init__(
        self,
        discriminator: FrontDiscriminator,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        pull: float,
    ):
        self.discriminator, self.vae, self.unet, self.scheduler = discriminator, vae, unet, scheduler
        self.pull = pull

    def judge(self, batch: Batch, noised: torch.Tensor, prediction: torch.Tensor) -> Terms:
        """What the discriminator thinks of the predicted fronts, and what it learns from them itself.

        A front counts by the share of noise it was predicted from: with little of it, it is nearly what was noised.
        The true ones are as they were drawn or taken, so that edges which the autoencoder loses are asked for too.
        Places count without `unseen_weight`: with it, a line where the true front has none would cost next to nothing.

        Args:
            batch: of `B` pairs.
            noised: what the U-Net saw, `B x C x h x h`.
            prediction: what it made of it, likewise.
        """
        weights = (1 - alpha_bars(self.scheduler, batch["timesteps"]))[:, None, None, None] * batch.get(
            "place_weights", torch.ones_like(noised[:, :1])
        )
        predicted = predicted_latents(self.scheduler, noised, prediction, batch["timesteps"])
        seen = (batch["fronts"], self.decode(predicted))
        true_fronts, predicted_fronts = (_without_masked(each, batch) for each in seen)
        fooled = self.discriminator.as_it_is(predicted_fronts, batch["back_control"])
        fronts = torch.cat([true_fronts, predicted_fronts.detach()])
        controls = batch["back_control"].repeat(2, 1, 1, 1)
        scores = self.discriminator(fronts, controls)
        disturbed = self.discriminator(_some(fronts) + batch["disturbance"], _some(controls))
        true, made = zip(*(scale.chunk(2) for scale in scores), strict=True)
        return {
            "adversarial": relativistic_loss([each.detach() for each in true], fooled, weights),
            "discriminator": relativistic_loss(made, true, weights),
            "smoothness": smoothness_penalty([*map(_some, scores)], disturbed),
        }

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures that latents stand for."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample

    def bound(
        self,
        mse: torch.Tensor,
        adversarial: torch.Tensor,
        prediction: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
    ) -> Terms:
        """`adversarial`, with its way back already gone as far as the prediction, and `adversarial_weight`, bounded as
        `bounded_adversarial_weight` has it.

        Args:
            mse, adversarial, weight: scalars, the last being mu.
            prediction: what the first two come from, `B x C x h x h` float32.
            inputs: those of the U-Net's last layer, as `listen` has them, `B x W x h x h`.
        """
        layer, slopes = self.unet.conv_out, {}
        slopes["mse"] = torch.autograd.grad(mse, prediction, retain_graph=True)[0]
        slopes["adversarial"] = torch.autograd.grad(adversarial * FLOAT16_SCALE, prediction)[0] / FLOAT16_SCALE
        norms = [
            conv2d_weight(inputs.detach().float(), layer.weight.shape, slopes[name], padding=layer.padding).norm()
            for name in ("mse", "adversarial")
        ]
        linear = (slopes["adversarial"] * prediction).sum()
        return {
            "adversarial": adversarial.detach() + linear - linear.detach(),
            "adversarial_weight": bounded_adversarial_weight(weight, self.pull, *norms),
        }

    @contextmanager
    def listen(self) -> Iterator[list[torch.Tensor]]:
        """Within, what goes into the U-Net's last layer is kept."""
        inputs = []
        handle = self.unet.conv_out.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
        try:
            yield inputs
        finally:
            handle.remove()


def _some(both: torch.Tensor) -> torch.Tensor:
    """Those of the true and of the predicted fronts that are disturbed, where the first half is of the true ones."""
    return torch.cat([half[::DISTURBED] for half in both.chunk(2)])


def _without_masked(fronts: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Fronts as a discriminator sees them: with what counts nothing, a masked face, in grey."""
    if "place_weights" not in batch:
        return fronts
    return fronts * F.interpolate((batch["place_weights"] > 0).to(fronts.dtype), fronts.shape[-2:])
