"""What each stage trains and on which loss: one module for each, so that any engine can wrap it as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from ..models import BackshanControlNetModel, BackshanControlNetOutput
from ..models.controlnet_backshan import chosen_features
from ..objective import (
    Objective,
    backshan_loss,
    coarse_error,
    cosine_matrix,
    min_snr_weights,
    noise_mse,
    pair_accuracy,
)
from .adversary import Adversary
from .contrast import Comparison, ComparisonHead, compare
from .discriminator import FrontDiscriminator
from .lora import add_lora
from .schedule import alpha_bars, denoising_target, predicted_latents
from .scratch import OPPONENT_COLOURS
from .stage_module import Batch, StageModule, Terms, learning


class AutoencoderStage(StageModule):
    """Reconstruction: mean |c - c_hat| + w_e mean |dc - dc_hat| + w_k KL.

    c is the picture in opponent colours, of which those without brightness weigh `colour_weight` times; dc are
    differences of neighbouring pixels, which keep edges sharp; both means are weighted by how much each pixel counts;
    KL is per latent value.

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

    def forward(self, batch: Batch) -> Terms:
        pixels = batch["pixels"]
        posterior = self.trained["vae"].encode(pixels).latent_dist
        weights = batch["weights"]
        rebuilt = self.trained["vae"].decode(posterior.mean + posterior.std * batch["noise"]).sample
        error = torch.einsum("dc,nchw->ndhw", self.colours, rebuilt - pixels)
        l1 = _mean(error.abs(), weights)
        edges = _mean(error.diff(dim=-1).abs(), weights[..., 1:])
        edges = edges + _mean(error.diff(dim=-2).abs(), weights[..., 1:, :])
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        return {"loss": loss, "l1": (rebuilt - pixels).abs().mean(), "kl": kl}


class PriorStage(StageModule):
    """The U-Net on front latents alone, without a condition."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler):
        super().__init__({"unet": unet}, {})
        self.scheduler = scheduler

    def forward(self, batch: Batch) -> Terms:
        noised = self.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        prediction = self.trained["unet"](noised, batch["timesteps"], batch["prompts"]).sample
        mse = noise_mse(prediction, denoising_target(self.scheduler, batch), batch.get("weights"))
        return {"loss": mse, "mse": mse}


class ControlStage(StageModule):
    """ControlNet on pairs, with the U-Net frozen (`controlnet`) or learning too (`joint`), as a whole or in part.

    With `lora_rank` the U-Net is frozen too, and adapters in it learn, under the name `unet_lora`. Where the objective
    has an adversary, it learns beside them, from fronts that `vae` decodes, under the name `discriminator`.

    All branches go through ControlNet as one batch, but for fronts that are only looked at. The first branch is the
    backs on noised front latents, whose residuals the U-Net gets; what the others see is the objective's choice.
    """

    def __init__(
        self,
        controlnet: BackshanControlNetModel,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        objective: Objective,
        train_unet: str | None,
        lora_rank: int | None = None,
        vae: AutoencoderKL | None = None,
    ):
        models = {"controlnet": controlnet, "unet": unet}
        names = ("controlnet", "unet") if train_unet and lora_rank is None else ("controlnet",)
        frozen = {n: m for n, m in models.items() if n not in names}
        judge = {"vae": vae} if objective.adversarial_weight else {}
        super().__init__({n: models[n] for n in names}, frozen | judge)
        if lora_rank is not None:
            self.trained["unet_lora"] = add_lora(unet, lora_rank)
        elif train_unet:
            unet.requires_grad_(False)
            for part in _unet_parts(unet, train_unet):
                part.requires_grad_(True)
        self.scheduler, self.objective = scheduler, objective
        self.adversary = None
        if objective.adversarial_weight:
            discriminator = FrontDiscriminator(controlnet.config.conditioning_channels)
            self.trained["discriminator"] = discriminator
            self.adversary = Adversary(discriminator, vae, unet, scheduler, objective.adversarial_pull)
        self.head = ComparisonHead(objective, _pooled_width(controlnet, objective.features))

    def named_trained(self) -> Iterator[tuple[str, nn.Module]]:
        """The trained models by component name, and the comparison's head, if it has weights."""
        yield from super().named_trained()
        if any(True for _ in self.head.parameters()):
            yield "head", self.head

    def forward(self, batch: Batch, comparison: Comparison | None = None, parts: int = 1) -> Terms:
        """L and its terms.

        Args:
            batch: of `B` pairs; `noise` and `timesteps` are part of it, so that a second pass sees the same.
            comparison: the contrastive term where it was computed over more pairs than these.
            parts: micro-batches of this step.
        """
        noised = self._noised_fronts(batch)
        output, features = self._control(batch, noised)
        with self.adversary.listen() if self.adversary else nullcontext() as inputs:
            prediction = self._predict(noised, batch, output).float()
        mse = self._squared_error(batch, prediction)
        loss, watched = mse, {}
        if self.objective.contrastive_weight:
            contrastive, watched = self._contrastive(batch, features, comparison, parts)
            loss = backshan_loss(mse, contrastive, batch["contrastive_weight"])
        if self.objective.coarse_weight:
            coarse = self._coarse_error(batch, noised, prediction)
            loss, watched = loss + batch["coarse_weight"] * coarse, {**watched, "coarse": coarse.detach()}
        if self.adversary:
            added = self.adversary.judge(batch, noised, prediction)
            weight = batch["adversarial_weight"]
            bounded = self.adversary.bound(mse, added.pop("adversarial"), prediction, inputs[0], weight)
            loss = loss + bounded["adversarial_weight"] * bounded["adversarial"] + sum(added.values())
            watched = watched | {name: term.detach() for name, term in (bounded | added).items()}
        return {"loss": loss, "mse": mse, **watched}

    def _squared_error(self, batch: Batch, prediction: torch.Tensor) -> torch.Tensor:
        """L_MSE over the items whose own fronts were noised."""
        first = self.objective.rolled_out(len(prediction))
        parts = prediction, denoising_target(self.scheduler, batch), batch.get("weights"), self._item_weights(batch)
        return noise_mse(*(None if part is None else part[first:] for part in parts))

    def _coarse_error(self, batch: Batch, noised: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """L_R. Where noise is predicted, latents count by the share of signal: of noise alone they can be anything."""
        predicted = predicted_latents(self.scheduler, noised, prediction, batch["timesteps"])
        is_noise = self.scheduler.config.prediction_type == "epsilon"
        kept = alpha_bars(self.scheduler, batch["timesteps"]) if is_noise else None
        return coarse_error(predicted, batch["latents"], batch.get("place_weights"), kept)

    def _contrastive(
        self, batch: Batch, features: list[torch.Tensor], comparison: Comparison | None, parts: int
    ) -> tuple[torch.Tensor, Terms]:
        """The contrastive term, and what is watched of it. Arguments as of `forward`."""
        temperature, shares = self.head.temperature(), PartialState().num_processes
        if comparison is None:
            comparison = compare(self.objective, features, batch["groups"], batch["shown"], temperature)
        else:
            shares *= parts
        learned = {} if temperature is None else {"temperature": temperature}
        return comparison.carried_by(features, temperature, shares), {**comparison.terms, **learned}

    @torch.no_grad()
    def compare(self, batches: Iterable[Batch]) -> list[Comparison]:
        """The contrastive term over all pairs of the micro-batches, of which one at a time is in memory."""
        if not self.objective.contrastive_weight:
            return []
        made, groups, shown = [], [], []
        for batch in batches:
            made.append(self._control(batch, self._noised_fronts(batch))[1])
            groups.append(batch["groups"])
            shown.append(batch["shown"])
        features = [torch.cat(parts) for parts in zip(*made, strict=True)]
        whole = compare(self.objective, features, torch.cat(groups), torch.cat(shown), self.head.temperature())
        size = len(groups[0])
        return [whole.part(slice(part * size, (part + 1) * size)) for part in range(len(groups))]

    def contested(self) -> list[nn.Parameter]:
        """The weights of ControlNet, if there is a contrastive term."""
        if not self.objective.contrastive_weight:
            return []
        return learning(self.trained["controlnet"])

    @torch.no_grad()
    def probe(self, batch: Batch) -> Terms:
        """Whether the pairs are found by looking at the backs: in-batch pair accuracy with each back as it is, with a
        blank one, and with the next item's. Where a blank one does as well, the fronts are found without a back. They
        are left out where no two backs of different outfits are shown: nothing is compared then.

        With them, the root mean square of the features of backs and of fronts.
        """
        if not self.objective.compares_fronts:
            return {}
        noised, backs = self._noised_fronts(batch), batch["back_control"]
        groups = None if self.objective.same_group_negatives else batch["groups"]
        # A back that stands in for another of the same outfit is no wrong one.
        shown = batch["shown"] & batch["shown"].roll(1, 0) & (batch["groups"] != batch["groups"].roll(1, 0))
        accuracies = {}
        for name, control in {
            "real_back": backs,
            "blank_back": batch["blank_control"].expand_as(backs),
            "shuffled_back": backs.roll(1, 0),
        }.items():
            features = self._control({**batch, "back_control": control}, noised)[1]
            accuracies[f"pair_accuracy_{name}"] = pair_accuracy(cosine_matrix(*features), groups, shown)
            if name == "real_back":
                norms = {
                    f"feature_rms_{view}": each.float().square().mean().sqrt()
                    for view, each in zip(("back", "front"), features, strict=True)
                }
        return {**(accuracies if shown.any() else {}), **norms}

    def _predict(self, noised: torch.Tensor, batch: Batch, residuals: BackshanControlNetOutput) -> torch.Tensor:
        """What the U-Net predicts.

        One in half precision in which nothing learns computes in that throughout, as in the public scripts: autocast
        would take its norms, and what follows them, to float32 and back.
        """
        unet = self.component("unet")
        inputs = (noised, batch["prompts"], *residuals.down_block_res_samples, residuals.mid_block_res_sample)
        throughout = unet.dtype != noised.dtype and "unet_lora" not in self.trained
        if throughout:
            inputs = [each.to(unet.dtype) for each in inputs]
        with torch.autocast(noised.device.type, enabled=False) if throughout else nullcontext():
            sample, prompts, *downs, mid = inputs
            return unet(
                sample,
                batch["timesteps"],
                prompts,
                down_block_additional_residuals=tuple(downs),
                mid_block_additional_residual=mid,
            ).sample

    def _control(self, batch: Batch, noised: torch.Tensor) -> tuple[BackshanControlNetOutput, list[torch.Tensor]]:
        """The residuals of the backs, and the features that are compared: of the backs and of the fronts, if any."""
        branches, watched = [(noised, batch["back_control"]), *self._compared(batch, noised)], []
        if self.objective.compares_fronts and not self.objective.front_gradient:
            watched = [branches.pop()]
        output = self._pass(branches, batch, residuals_of=len(noised))
        residuals = output.first(len(noised))
        if not self.objective.contrastive_weight:
            return residuals, []
        features, mirrored = [*self._features(output).split(len(noised))], self.objective.mirror_features
        if mirrored and not watched:
            features[-1] = self._features(output, mirrored)[-len(noised) :]
        with torch.no_grad():
            features += [self._features(self._pass([branch], batch, residuals_of=0), mirrored) for branch in watched]
        views = 2 if self.objective.compares_fronts else 1
        return residuals, [self.head(each) for each in features[-views:]]

    def _compared(self, batch: Batch, noised: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Latents and control pictures of the branches behind the first."""
        if not self.objective.compares_fronts:
            return []
        match self.objective.front_latents:
            case "shared":
                return [(noised, batch["front_control"])]
            case "pure":
                return [(batch["front_noise"], batch["front_control"])]
        front = (self._noised(batch["latents"], batch["front_noise"], batch), batch["front_control"])
        if self.objective.front_latents == "independent":
            return [front]
        return [(self._noised(batch["back_latents"], batch["noise"], batch), batch["back_control"]), front]

    def _pass(self, branches: list[tuple], batch: Batch, residuals_of: int) -> BackshanControlNetOutput:
        """One pass of ControlNet for all branches."""
        latents, controls = (torch.cat(parts) for parts in zip(*branches, strict=True))
        copies = len(branches)
        overhear = {"hidden_states_of": residuals_of} if self.objective.before_zero_convolutions else {}
        return self.trained["controlnet"](
            latents, batch["timesteps"].repeat(copies), batch["prompts"].repeat(copies, 1, 1), controls, **overhear
        )

    def _features(self, output: BackshanControlNetOutput, mirrored: bool = False) -> torch.Tensor:
        objective = self.objective
        return BackshanControlNetModel.control_features(
            output, objective.features, objective.pooled, objective.before_zero_convolutions, mirrored
        )

    def _noised_fronts(self, batch: Batch) -> torch.Tensor:
        """What the U-Net sees: noised latents of the fronts, and of the first ones, where the objective wants it, of
        what the models make of them now."""
        latents = batch["latents"]
        if rolled_out := self.objective.rolled_out(len(latents)):
            latents = torch.cat([self._first_fronts(batch, rolled_out), latents[rolled_out:]])
        return self._noised(latents, batch["noise"], batch)

    @torch.no_grad()
    def _first_fronts(self, batch: Batch, count: int) -> torch.Tensor:
        """The latents that the first `count` items are predicted to have from noise alone, where sampling begins."""
        noise, last = batch["first_noise"], self.scheduler.config.num_train_timesteps - 1
        first = {name: batch[name][:count] for name in ("prompts", "back_control")}
        first["timesteps"] = torch.full_like(batch["timesteps"][:count], last)
        output = self._pass([(noise, first["back_control"])], first, residuals_of=count)
        prediction = self._predict(noise, first, output)
        torch.clear_autocast_cache()  # in which older torch keeps weights without their way back
        return predicted_latents(self.scheduler, noise, prediction, first["timesteps"])

    def _noised(self, latents: torch.Tensor, noise: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, batch["timesteps"])

    def _item_weights(self, batch: Batch) -> torch.Tensor | None:
        if not self.objective.min_snr_gamma:
            return None
        kept = alpha_bars(self.scheduler, batch["timesteps"])
        return min_snr_weights(kept, self.objective.min_snr_gamma, self.scheduler.config.prediction_type)


def _unet_parts(unet: UNet2DConditionModel, name: str) -> list[nn.Module]:
    """What learns where `unlock_unet` is `name`.

    `decoder` is what the public ControlNet code unlocks: the blocks on the way up and the output. `attention` is the
    queries, keys, values and outputs of every attention layer.
    """
    if name == "decoder":
        return [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
    if name == "attention":
        return [module for module in unet.modules() if isinstance(module, Attention)]
    return [unet]


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of `B x C x H x W` values, with weights `B x 1 x H x W`."""
    return (values * weights).sum() / (weights.sum() * values.shape[1])


def _pooled_width(controlnet: BackshanControlNetModel, features: str) -> int:
    """Values of one item's pooled features: the channels of the residuals that are chosen."""
    downs = tuple(convolution.out_channels for convolution in controlnet.controlnet_down_blocks)
    return sum(chosen_features(features, downs, controlnet.controlnet_mid_block.out_channels))
