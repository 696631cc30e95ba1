"""What each stage trains and on which loss: one module for each, so that any engine can wrap it as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.grad import conv2d_weight

from ..models import BackshanControlNetModel, BackshanControlNetOutput
from ..models.controlnet_backshan import chosen_features
from ..objective import (
    Objective,
    backshan_loss,
    bounded_adversarial_weight,
    cosine_matrix,
    min_snr_weights,
    noise_mse,
    pair_accuracy,
    relativistic_loss,
    smoothness_penalty,
)
from .config import ConfigError
from .contrast import Comparison, ComparisonHead, compare
from .discriminator import FrontDiscriminator
from .lora import add_lora
from .scratch import OPPONENT_COLOURS

FLOAT16_SCALE = 2.0**10
"""How many times as large slopes are on their way through the discriminator and the autoencoder, which may be in half
precision and lose small ones."""

Batch = dict[str, torch.Tensor]
"""What a micro-batch of `B` pairs holds, by name; `S` is a picture's or crop's side in px, `h` that of its latents.

    every stage         items `B` int64; noise, of the shape of the latents
    vae                 pixels `2B x 3 x S x S` in [-1, 1], weights `2B x 1 x S x S`
    all other stages    latents `B x C x h x h`, prompts `B x T x E`, timesteps `B` int64; weights `B x 1 x h x h`
                        where not all cells count alike
    controlnet, joint   back_control `B x K x S x S`, a control tensor, see `conditioning.py`
    with an adversary   adversarial_weight, a scalar; fronts `B x 3 x S x S` in [-1, 1]; disturbance, likewise
    with a comparison   shown `B` bool, groups `B` int64, contrastive_weight, a scalar; where fronts are compared
                        front_control, as back_control, blank_control `1 x K x S x S`, that of a white picture, and
                        for some choices of their latents front_noise and back_latents, as noise and latents
"""

Terms = dict[str, torch.Tensor]
"""Scalars by name; `loss` is minimised, the others are watched."""


def learning(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a module that learn."""
    return [weight for weight in module.parameters() if weight.requires_grad]


class StageModule(nn.Module):
    """A loss with the models it trains.

    Subclasses fill `trained` (name of the pipeline component -> module) and implement `forward(batch)`, a function of
    the batch alone, whatever is random being part of it; it returns scalars of which `loss` is minimised. Frozen
    models are held outside of the module tree, so that they are neither wrapped nor saved.
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

    def models(self) -> Iterator[ModelMixin]:
        """The models that a step goes through, trained or frozen."""
        yield from (each for each in (*self.trained.values(), *self.frozen.values()) if isinstance(each, ModelMixin))

    def compare(self, batches: Iterable[Batch]) -> list[Comparison]:
        """What has to be computed over all micro-batches of a step before any of them; empty if nothing has."""
        return []

    def contested(self) -> list[nn.Parameter]:
        """Weights at which `mse` and another term of the loss pull; empty where the loss is one term."""
        return []

    def probe(self, batch: Batch) -> Terms:
        """Scalars that are worth a look now and then, and no step needs."""
        return {}


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
        if objective.adversarial_weight:
            self.trained["discriminator"] = FrontDiscriminator(controlnet.config.conditioning_channels)
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
        noised = self._noised(batch["latents"], batch["noise"], batch)
        output, features = self._control(batch, noised)
        with _inputs_of(self._last_layer()) if self.objective.adversarial_weight else nullcontext() as inputs:
            prediction = self._predict(noised, batch, output).float()
        target, weights = denoising_target(self.scheduler, batch), batch.get("weights")
        mse = noise_mse(prediction, target, weights, self._item_weights(batch))
        loss, watched = mse, {}
        if self.objective.contrastive_weight:
            contrastive, watched = self._contrastive(batch, features, comparison, parts)
            loss = backshan_loss(mse, contrastive, batch["contrastive_weight"])
        if self.objective.adversarial_weight:
            judged = self._judged(batch, noised, prediction)
            judged |= self._bounded(mse, judged["adversarial"], prediction, inputs[0], batch["adversarial_weight"])
            loss = loss + judged["adversarial_weight"] * judged["adversarial"]
            loss = loss + judged["discriminator"] + judged["smoothness"]
            watched = watched | {name: term.detach() for name, term in judged.items()}
        return {"loss": loss, "mse": mse, **watched}

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

    def _judged(self, batch: Batch, noised: torch.Tensor, prediction: torch.Tensor) -> Terms:
        """What the discriminator thinks of the predicted fronts, and what it learns from them itself.

        A front counts by the share of noise it was predicted from: with little of it, it is nearly the true one. The
        true ones are as they were drawn or taken, so that edges which the autoencoder loses are asked for too.
        """
        weights = (1 - alpha_bars(self.scheduler, batch["timesteps"]))[:, None, None, None] * batch.get(
            "weights", torch.ones_like(noised[:, :1])
        )
        predicted = predicted_latents(self.scheduler, noised, prediction, batch["timesteps"])
        seen = (batch["fronts"], self._decoded(predicted))
        true_fronts, predicted_fronts = (_without_masked(each, batch) for each in seen)
        discriminator, controls = self.trained["discriminator"], batch["back_control"]
        fooled = discriminator.as_it_is(predicted_fronts, controls)
        fronts = torch.cat([true_fronts, predicted_fronts.detach()])
        controls, disturbance = controls.repeat(2, 1, 1, 1), batch["disturbance"].repeat(2, 1, 1, 1)
        scores, disturbed = (discriminator(each, controls) for each in (fronts, fronts + disturbance))
        true, made = zip(*(scale.chunk(2) for scale in scores), strict=True)
        return {
            "adversarial": relativistic_loss([each.detach() for each in true], fooled, weights),
            "discriminator": relativistic_loss(made, true, weights),
            "smoothness": smoothness_penalty(scores, disturbed),
        }

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures that latents stand for."""
        vae = self.frozen["vae"]
        return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample

    def _bounded(
        self,
        mse: torch.Tensor,
        adversarial: torch.Tensor,
        prediction: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
    ) -> Terms:
        """`adversarial`, with its way back already gone as far as the prediction, and `adversarial_weight`, bounded as
        [`bounded_adversarial_weight`] has it.

        Args:
            mse, adversarial, weight: scalars, the last being mu.
            prediction: what the first two come from, `B x C x h x h` float32.
            inputs: those of the U-Net's last layer, `B x W x h x h`.
        """
        layer, slopes = self._last_layer(), {}
        slopes["mse"] = torch.autograd.grad(mse, prediction, retain_graph=True)[0]
        slopes["adversarial"] = torch.autograd.grad(adversarial * FLOAT16_SCALE, prediction)[0] / FLOAT16_SCALE
        norms = [
            conv2d_weight(inputs.detach().float(), layer.weight.shape, slopes[name], padding=layer.padding).norm()
            for name in ("mse", "adversarial")
        ]
        linear = (slopes["adversarial"] * prediction).sum()
        return {
            "adversarial": adversarial.detach() + linear - linear.detach(),
            "adversarial_weight": bounded_adversarial_weight(weight, self.objective.adversarial_pull, *norms),
        }

    def _last_layer(self) -> nn.Conv2d:
        return self.component("unet").conv_out

    @torch.no_grad()
    def compare(self, batches: Iterable[Batch]) -> list[Comparison]:
        """The contrastive term over all pairs of the micro-batches, of which one at a time is in memory."""
        if not self.objective.contrastive_weight:
            return []
        made, groups, shown = [], [], []
        for batch in batches:
            made.append(self._control(batch, self._noised(batch["latents"], batch["noise"], batch))[1])
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
        noised, backs = self._noised(batch["latents"], batch["noise"], batch), batch["back_control"]
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

    def _noised(self, latents: torch.Tensor, noise: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, batch["timesteps"])

    def _item_weights(self, batch: Batch) -> torch.Tensor | None:
        if not self.objective.min_snr_gamma:
            return None
        kept = alpha_bars(self.scheduler, batch["timesteps"])
        return min_snr_weights(kept, self.objective.min_snr_gamma, self.scheduler.config.prediction_type)


def _without_masked(fronts: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Fronts as a discriminator sees them: with what counts nothing, a masked face, in grey."""
    if "weights" not in batch:
        return fronts
    return fronts * F.interpolate((batch["weights"] > 0).to(fronts.dtype), fronts.shape[-2:])


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What goes into a layer meanwhile."""
    inputs = []
    handle = layer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()


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


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of `B x C x H x W` values, with weights `B x 1 x H x W`."""
    return (values * weights).sum() / (weights.sum() * values.shape[1])


def _pooled_width(controlnet: BackshanControlNetModel, features: str) -> int:
    """Values of one item's pooled features: the channels of the residuals that are chosen."""
    downs = tuple(convolution.out_channels for convolution in controlnet.controlnet_down_blocks)
    return sum(chosen_features(features, downs, controlnet.controlnet_mid_block.out_channels))
