"""The Backshan loss: pure functions of tensors, each with its equation above it.

Symbols: z_f front latents, eps noise, t timestep, z_t = alpha_t z_f + sigma_t eps; beta_b and beta_f the control
features of the back and of the front pictures, `B x D`; D the `B x B` cosine similarities; tau a temperature.

Source of the method: the Backshan diffusion model, MIRU 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SMALLEST_TEMPERATURE = 0.01
"""Below it a learned temperature makes the softmax so steep that one pair rules its gradient (as in CLIP)."""

RMS_FLOOR = 1e-4
"""Features whose root mean square is far below this count as absent: their cosine goes to 0, and so does its slope."""

BLOCK = 4
"""Side, in latent cells, of what is averaged to see the coarse colours of a front."""

_TINY = torch.finfo(torch.float32).tiny
_NEVER = -1e9
"""A logit that counts nothing; minus infinity would make the gradient of nothing but such ones NaN."""

CONTRASTS = ("pairs", "negatives")
FEATURES = ("all", "mid", "last_down")  # of `BackshanControlNetModel.control_features`
FRONT_LATENTS = ("shared", "independent", "own", "pure")
TIMESTEPS = ("item", "batch")

_CHOICES = {"contrast": CONTRASTS, "features": FEATURES, "front_latents": FRONT_LATENTS, "timesteps": TIMESTEPS}
_NOT_NEGATIVE = {
    "contrastive_weight": "a number that is not negative",
    "contrastive_warmup_steps": "a number that is not negative",
    "contrastive_anneal_steps": "a number that is not negative",
    "projection_width": "a number that is not negative",
    "min_snr_gamma": "0 to switch it off, or more",
    "noise_offset": "0 to switch it off, or more",
    "adversarial_weight": "0 to switch it off, or more",
    "adversarial_head_start_steps": "a number that is not negative",
    "adversarial_warmup_steps": "a number that is not negative",
    "coarse_weight": "0 to switch it off, or more",
    "rollout_share": "0 to switch it off, or a share below 1",
}
"""Fields, and what to give for each."""


@dataclass(frozen=True)
class Objective:
    """What a run minimises: L = L_MSE + lambda L_C + mu L_A + nu L_R. What the method leaves open are fields.

    Args:
        contrastive_weight: lambda at its height; 0 leaves the front pictures out of ControlNet.
        contrastive_warmup_steps: steps over which lambda rises from 0 in a line.
        contrastive_anneal_steps: steps after the warm-up over which lambda falls to 0 in a line. 0: it stays.
        contrast: `pairs`, the cross entropy that finds each back's own front, or `negatives`, which only drives
            backs of different outfits apart and needs no front.
        temperature: tau, by which the cosines are divided before the softmax.
        learned_temperature: whether tau is a weight that begins at `temperature`.
        both_directions: whether each front also has to find its own back.
        features: `all` residuals, that of the middle block (`mid`), or the last one on the way down (`last_down`).
        pooled: whether each residual is averaged over its positions.
        mirror_features: whether those of fronts are flipped left-right before they are compared: unless the model
            flips the back view, its left lies on the front's right. Pooled features have no sides.
        before_zero_convolutions: whether features are taken where the zero convolutions begin, not where they end.
        projection_width: width of a linear head behind the features, which is thrown away after training. 0: none.
        front_latents: what the front branch sees beside its picture: the back branch's z_t (`shared`), z_f noised
            anew (`independent`), each view's latents noised for the comparison (`own`), or noise alone (`pure`).
        front_gradient: whether the front branch learns too, or is only looked at.
        timesteps: one t for each `item`, or one for the whole `batch`.
        timestep_shift: how strongly high timesteps are preferred, as `timesteps_shifted` has it. 1: all come alike.
        same_group_negatives: whether items of one group are negatives of each other.
        min_snr_gamma: weighs timesteps by min(SNR, gamma). 0: all alike.
        noise_offset: share of noise that is constant over a latent channel.
        adversarial_weight: mu at its height, by which it counts that a discriminator tells predicted fronts from true
            ones. 0 leaves it out.
        adversarial_pull: c, how many times as hard as the mean squared error this may pull, as
            `bounded_adversarial_weight` has it.
        adversarial_head_start_steps: steps in which the discriminator learns and mu is 0: one that is fooled before
            it knows anything never comes to know it.
        adversarial_warmup_steps: steps after these over which mu rises from 0 in a line.
        coarse_weight: nu, by which it counts that the coarse colours of predicted fronts are not those of the true
            ones, as `coarse_error` has it: what an adversary must not lead away from. 0 leaves it out.
        rollout_share: of items that begin where sampling would bring them: what is noised is not the true front but
            what the model itself makes of noise alone. They need an adversary to say what is wrong with them, since
            the true front is no longer the one that their beginnings show, and `coarse_weight` to keep them near it.

    Raises:
        ValueError: if a field has none of its values, or does not fit another one.
    """

    contrastive_weight: float = 0.0
    contrastive_warmup_steps: int = 0
    contrastive_anneal_steps: int = 0
    contrast: str = "pairs"
    temperature: float = 1.0
    learned_temperature: bool = False
    both_directions: bool = False
    features: str = "all"
    pooled: bool = False
    mirror_features: bool = False
    before_zero_convolutions: bool = False
    projection_width: int = 0
    front_latents: str = "shared"
    front_gradient: bool = True
    timesteps: str = "item"
    timestep_shift: float = 1.0
    same_group_negatives: bool = False
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_pull: float = 1.0
    adversarial_head_start_steps: int = 0
    adversarial_warmup_steps: int = 0
    coarse_weight: float = 0.0
    rollout_share: float = 0.0

    def __post_init__(self):
        self._check_choices()
        self._check_numbers()
        if self.rollout_share >= 1:
            raise ValueError(f"objective.rollout_share is {self.rollout_share}: give a share below 1.")
        if self.rollout_share and not (self.adversarial_weight and self.coarse_weight):
            raise ValueError(
                "objective.rollout_share needs an adversary and an anchor: give objective.adversarial_weight and"
                " objective.coarse_weight too."
            )
        if self.mirror_features and self.pooled:
            raise ValueError("objective.mirror_features needs features with positions: set objective.pooled to false.")
        if self.projection_width and not self.pooled:
            raise ValueError("objective.projection_width needs pooled features: set objective.pooled to true.")

    def _check_choices(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}: choose from {', '.join(known)}.")

    def _check_numbers(self) -> None:
        for name, remedy in _NOT_NEGATIVE.items():
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: give {remedy}.")
        for name in ("temperature", "timestep_shift", "adversarial_pull"):
            if not getattr(self, name) > 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: give a positive number.")
        if self.learned_temperature and self.temperature < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"objective.temperature is {self.temperature}: one that is learned begins at {SMALLEST_TEMPERATURE} or"
                " above."
            )

    @property
    def compares_fronts(self) -> bool:
        """Whether front pictures go through ControlNet."""
        return self.contrastive_weight > 0 and self.contrast == "pairs"

    def rolled_out(self, count: int) -> int:
        """How many of `count` items begin where sampling would bring them."""
        return int(self.rollout_share * count)

    # lambda(n) = lambda min(1, n / W) max(0, 1 - max(0, n - W) / A)
    def weight_at(self, step: int) -> float:
        """lambda at `step` (from 0); W steps of warm-up, A of annealing."""
        weight = self.contrastive_weight
        if step < self.contrastive_warmup_steps:
            return weight * step / self.contrastive_warmup_steps
        if self.contrastive_anneal_steps:
            return weight * max(0.0, 1 - (step - self.contrastive_warmup_steps) / self.contrastive_anneal_steps)
        return weight

    # mu(n) = 0 for n < H, mu (n - H) / W for n < H + W, mu from then on
    def adversarial_weight_at(self, step: int) -> float:
        """mu at `step` (from 0); H steps of head start, W of warm-up."""
        risen = step - self.adversarial_head_start_steps
        if risen < 0:
            return 0.0
        if risen < self.adversarial_warmup_steps:
            return self.adversarial_weight * risen / self.adversarial_warmup_steps
        return self.adversarial_weight


PRESETS = {
    "mse": Objective(),
    "paper": Objective(contrastive_weight=1.0),
    "dispersive": Objective(
        contrastive_weight=0.5,
        contrast="negatives",
        temperature=0.5,
        features="mid",
        pooled=True,
        before_zero_convolutions=True,
    ),
    "backshan": Objective(
        contrastive_weight=0.05,
        contrastive_warmup_steps=500,
        temperature=0.1,
        both_directions=True,
        features="mid",
        pooled=True,
        before_zero_convolutions=True,
        front_latents="independent",
    ),
}
"""`mse`: the plain ControlNet loss, the method's baseline. `paper`: L_MSE + L_CE with tau = 1, a plain sum, all
residuals flattened. `dispersive`: negatives only, a control arm (Wang and He 2025, "Diffuse and disperse").
`backshan`: reasoned, not yet chosen by an ablation: features of the middle block, where alignment helps most in
U-Nets (U-REPA), before the zero convolutions, so that cosines exist from the first step, pooled, so that left and
right need not agree; a front that cannot be told from z_t alone; a temperature that lets 16 pairs be told apart."""


# p' = s p / (1 + (s - 1) p)
def timesteps_shifted(positions: torch.Tensor, shift: float) -> torch.Tensor:
    """Places in a schedule, shares from 0 to 1 of its length, moved towards its noisy end (Esser et al. 2024, "Scaling
    rectified flow transformers for high-resolution image synthesis").

    Args:
        positions: of any shape.
        shift: s, the ratio of the odds p / (1 - p) after and before. 1: they stay.
    """
    return shift * positions / (1 + (shift - 1) * positions)


# L_MSE = sum_ik w_i m_ik (y_ik - y_hat_ik)^2 / sum_ik m_ik over items i and latent cells k,
# with y = eps, or y = alpha_t eps - sigma_t z_f where the U-Net predicts v
def noise_mse(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    item_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the U-Net's prediction, in float32.

    Args:
        prediction: `B x C x H x W`.
        target: `B x C x H x W`.
        weights: `B x 1 x H x W`, m of each latent cell, 0 where it is left out. None: all are 1.
        item_weights: `B`, w of each item. None: all are 1.

    Returns:
        A scalar: the mean over what is left, 0 where nothing is left.
    """
    if weights is None and item_weights is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=1, keepdim=True)
    if item_weights is not None:
        errors = errors * item_weights[:, None, None, None]
    return _mean_over(errors, weights)


# w = min(SNR, gamma) / SNR where the U-Net predicts eps, min(SNR, gamma) / (SNR + 1) where it predicts v
def min_snr_weights(alpha_bars: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Weights of `B` items that keep steps of little noise from ruling the loss (Hang et al. 2023).

    Args:
        alpha_bars: `B`, alpha_t squared, so that SNR = alpha_bar / (1 - alpha_bar).
        gamma: the highest SNR that counts in full; 5 is usual.
        prediction_type: `epsilon` or `v_prediction`.
    """
    snr = alpha_bars / (1 - alpha_bars)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1)


# D_ij = <beta_b^i, beta_f^j> / (|beta_b^i| |beta_f^j|)
def cosine_matrix(back_features: torch.Tensor, front_features: torch.Tensor) -> torch.Tensor:
    """Cosine similarities of every back with every front.

    Before training every control feature is exactly zero. Each norm therefore carries a floor, sqrt(|beta|^2 + D r^2)
    with r = `RMS_FLOOR`: zero features have cosine 0 with everything, and no gradient exceeds 1 / (r sqrt(D)).

    Args:
        back_features: `B x D`.
        front_features: `B x D`.

    Returns:
        `B x B` float32; row i compares back i with every front.
    """
    device = back_features.device.type
    # Autocast would round the product to 8 bits, and cosines near 1 would tie. (The meta device knows no autocast.)
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        backs, fronts = _unit_length(back_features.float()), _unit_length(front_features.float())
        return backs @ fronts.T


def _unit_length(features: torch.Tensor) -> torch.Tensor:
    floor = RMS_FLOOR**2 * features.shape[1]
    return features / (features.square().sum(dim=1, keepdim=True) + floor).sqrt()


# L_CE = -(1/|S|) sum_{i in S} log( exp(D_ii / tau) / sum_{j in N_i} exp(D_ij / tau) ),
# S the items whose back is shown, N_i = {i} and every candidate j of another group
def contrastive_cross_entropy(
    similarities: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    group_ids: torch.Tensor | None = None,
    shown: torch.Tensor | None = None,
    candidates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross entropy over the rows of a similarity matrix, with the diagonal as the target.

    Args:
        similarities: `B x B`.
        temperature: tau > 0.
        group_ids: `B` integers; items of one group are never negatives of each other. None: all are.
        shown: `B` booleans, false where the back was blanked: its row has nothing to find. None: all are shown.
        candidates: `B` booleans, false for columns that are no negatives. None: all are.

    Returns:
        A scalar: log B where nothing is told apart, towards 0 where every pair is found; 0 where no back is shown.
    """
    logits = similarities / temperature
    if group_ids is not None:
        logits = logits.masked_fill(_same_group(group_ids) & ~_diagonal(logits), float("-inf"))
    if candidates is not None:
        logits = logits.masked_fill(~candidates[None, :] & ~_diagonal(logits), float("-inf"))
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    return _mean_over(losses, shown)


# L_N = log( (1/|P|) sum_{(i,j) in P} exp(D_ij / tau) ), P the pairs i != j of different groups whose backs are shown
def dispersive_loss(
    similarities: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    group_ids: torch.Tensor | None = None,
    shown: torch.Tensor | None = None,
) -> torch.Tensor:
    """How alike different items are, a contrastive loss without positives (Wang and He 2025).

    Arguments as of [`contrastive_cross_entropy`], with similarities of the backs among themselves. A scalar comes
    back: 1 / tau where all are alike, -1 / tau where all are opposite; 0 where there is no such pair.
    """
    chosen = ~_diagonal(similarities)
    if group_ids is not None:
        chosen = chosen & ~_same_group(group_ids)
    if shown is not None:
        chosen = chosen & shown[:, None] & shown[None, :]
    logits = (similarities / temperature).masked_fill(~chosen, _NEVER)
    count = chosen.sum()
    loss = torch.logsumexp(logits.flatten(), dim=0) - count.clamp(min=1).log()
    return torch.where(count > 0, loss, 0.0)


# L_C = L_CE(D), (L_CE(D) + L_CE(D^T)) / 2 in both directions, or L_N of the backs among themselves;
# in D^T the shown backs are the candidates
def contrastive_terms(
    objective: Objective,
    back_features: torch.Tensor,
    front_features: torch.Tensor | None = None,
    group_ids: torch.Tensor | None = None,
    shown: torch.Tensor | None = None,
    temperature: float | torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """L_C under `contrastive`, and under `pair_accuracy`, to be watched, how many backs find their front.

    Args:
        objective: which L_C.
        back_features: `B x D`.
        front_features: `B x D`; None where only negatives count.
        group_ids: `B` integers, used unless the objective takes items of one group for negatives.
        shown: `B` booleans, false where the back was blanked.
        temperature: tau where it is learned. None: the objective's.
    """
    tau = objective.temperature if temperature is None else temperature
    groups = None if objective.same_group_negatives else group_ids
    if objective.contrast == "negatives":
        return {"contrastive": dispersive_loss(cosine_matrix(back_features, back_features), tau, groups, shown)}
    similarities = cosine_matrix(back_features, front_features)
    loss = contrastive_cross_entropy(similarities, tau, groups, shown)
    if objective.both_directions:
        loss = (loss + contrastive_cross_entropy(similarities.T, tau, groups, shown, candidates=shown)) / 2
    return {"contrastive": loss, "pair_accuracy": pair_accuracy(similarities, groups, shown)}


# L_A = (1/S) sum_s ( sum_p m_sp log(1 + exp(a_sp - b_sp)) / sum_p m_sp ) over scales s and patches p, with a the
# scores of the true fronts and b those of the predicted ones; for the discriminator itself the two change places
def relativistic_loss(
    lower: Sequence[torch.Tensor], higher: Sequence[torch.Tensor], weights: torch.Tensor
) -> torch.Tensor:
    """How far the scores of `higher` are from being the higher ones.

    Each predicted front is compared with the true one of the same back, since true ones differ more from each other
    than from their predictions (Jolicoeur-Martineau 2019, "The relativistic discriminator: a key element missing from
    standard GAN").

    Args:
        lower: a, for each scale `B x 1 x h x h`.
        higher: b, likewise.
        weights: `B x 1 x H x W`, how much each place of a front counts; m are their means over the patches.

    Returns:
        A scalar: log 2 where they cannot be told apart, towards 0 where every score of `higher` is the higher one.
    """
    losses = []
    for low, high in zip(lower, higher, strict=True):
        errors = F.softplus(low.float() - high.float())
        losses.append(_mean_over(errors, F.adaptive_avg_pool2d(weights.float(), errors.shape[-2:])))
    return torch.stack(losses).mean()


# mu' = min( mu, c |dL_MSE/dW| / |dL_A/dW| ) with the weights W of the U-Net's last layer
def bounded_adversarial_weight(
    weight: torch.Tensor, pull: float, mse_norm: torch.Tensor, adversarial_norm: torch.Tensor
) -> torch.Tensor:
    """mu of a micro-batch, on each process, so that L_A never pulls more than c times as hard as L_MSE.

    The adaptive weight of Esser et al. 2021, "Taming transformers for high-resolution image synthesis", as a bound
    alone: as a weight, it would grow while the discriminator is fooled, and keep it so.

    Args:
        weight: mu, a scalar.
        pull: c.
        mse_norm, adversarial_norm: scalars, the norms of the two gradients.
    """
    return (pull * mse_norm / adversarial_norm.clamp(min=_TINY)).minimum(weight)


# L_R = sum_ik w_i m_ik (sum_p m_ip e_ip / sum_p m_ip)^2 / sum_ik m_ik over items i and blocks k of latent cells p,
# with the errors e = z_hat_f - z_f and m_ik the mean of a block's m_ip
def coarse_error(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    item_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the means over blocks of `BLOCK` x `BLOCK` latent cells, in float32: whether garments have
    their colours, whatever is drawn on them.

    Args:
        prediction: `B x C x H x W`.
        target: `B x C x H x W`.
        weights: `B x 1 x H x W`, m of each latent cell, 0 where it is left out. None: all are 1.
        item_weights: `B`, w of each item. None: all are 1.

    Returns:
        A scalar: the mean over what is left, 0 where nothing is left.
    """
    errors = prediction.float() - target.float()
    weights = torch.ones_like(errors[:, :1]) if weights is None else weights.float()
    counted = F.avg_pool2d(weights, BLOCK, ceil_mode=True)
    errors = F.avg_pool2d(errors * weights, BLOCK, ceil_mode=True) / counted.clamp(min=_TINY)
    squares = errors.square().mean(dim=1, keepdim=True)
    return _mean_over(squares if item_weights is None else squares * item_weights[:, None, None, None], counted)


# L_S = (1/S) sum_s mean_p ( (d_sp(x + n) - d_sp(x))^2 / 10 + d_sp(x)^2 / 1000 ) with noise n
def smoothness_penalty(scores: Sequence[torch.Tensor], disturbed: Sequence[torch.Tensor]) -> torch.Tensor:
    """What keeps a discriminator from steep slopes, which teach nothing, and its scores from drifting away.

    The first part is the squared gradient of a zero-centred penalty (Mescheder et al. 2018, "Which training methods
    for GANs do actually converge?") as a difference, so that no second derivative is needed.

    Args:
        scores: d(x), for each scale `B x 1 x h x h`.
        disturbed: d(x + n), likewise.
    """
    steep = [(after.float() - before.float()).square().mean() for before, after in zip(scores, disturbed, strict=True)]
    far = [before.float().square().mean() for before in scores]
    return torch.stack(steep).mean() / 10 + torch.stack(far).mean() / 1000


# L = L_MSE + lambda L_C
def backshan_loss(mse: torch.Tensor, contrastive: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """The whole loss from its two scalars and lambda, [`Objective.weight_at`] the step."""
    return mse + weight * contrastive


# acc = (1/|S|) #{ i in S : argmax_{j in N_i} D_ij = i }
def pair_accuracy(
    similarities: torch.Tensor, group_ids: torch.Tensor | None = None, shown: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of the shown backs whose own front is more similar than each of another group; chance is about 1 / B.

    NaN where none is shown. Arguments as of [`contrastive_cross_entropy`].
    """
    if group_ids is not None:
        similarities = similarities.masked_fill(_same_group(group_ids) & ~_diagonal(similarities), float("-inf"))
    found = (similarities.argmax(dim=1) == torch.arange(len(similarities), device=similarities.device)).float()
    return (found if shown is None else found.where(shown, torch.nan)).nanmean()


def _diagonal(square: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(square), dtype=torch.bool, device=square.device)


def _same_group(group_ids: torch.Tensor) -> torch.Tensor:
    return group_ids[:, None] == group_ids[None, :]


def _mean_over(values: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """Mean of the chosen ones of some values, 0 if there are none."""
    if chosen is None:
        return values.mean()
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
