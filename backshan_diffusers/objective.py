"""The Backshan loss: pure functions of tensors, each with its equation above it.

Symbols: z_f front latents, eps noise, t timestep, z_t = alpha_t z_f + sigma_t eps; beta_b and beta_f the control
features of the back and of the front pictures, `B x D`; D the `B x B` cosine similarities; tau a temperature.

Source of the method: the Backshan diffusion model, MIRU 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

RMS_FLOOR = 1e-4
"""Features whose root mean square is far below this count as absent: their cosine goes to 0, and so does its slope."""


@dataclass(frozen=True)
class Objective:
    """What a run minimises.

    Args:
        contrastive_weight: lambda in L = L_MSE + lambda L_CE; 0 leaves the front pictures out of ControlNet.
        temperature: tau, by which the cosines are divided before the softmax.
    """

    contrastive_weight: float = 0.0
    temperature: float = 1.0


PRESETS = {
    "mse": Objective(contrastive_weight=0.0),
    "paper": Objective(contrastive_weight=1.0, temperature=1.0),
}
"""`mse`: the plain ControlNet loss, the method's baseline. `paper`: L_MSE + L_CE with tau = 1, a plain sum."""


# L_MSE = sum w (y - y_hat)^2 / sum w, with y = eps, or y = alpha_t eps - sigma_t z_f where the U-Net predicts v
def noise_mse(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of the U-Net's prediction, in float32.

    Args:
        prediction: `B x C x H x W`.
        target: `B x C x H x W`.
        weights: `B x 1 x H x W`, w of each latent cell, 0 where it is left out. None: all are 1.

    Returns:
        A scalar: the mean over what is left, 0 where nothing is left.
    """
    if weights is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=1, keepdim=True)
    return _mean_over(errors, weights)


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
    floor = RMS_FLOOR**2 * back_features.shape[1]
    units = [
        features / (features.square().sum(dim=1, keepdim=True) + floor).sqrt()
        for features in (back_features.float(), front_features.float())
    ]
    # Not a matrix product: autocast would round that to 8 bits, and cosines near 1 would tie.
    return torch.stack([(back * units[1]).sum(dim=1) for back in units[0]])


# L_CE = -(1/|S|) sum_{i in S} log( exp(D_ii / tau) / sum_{j in N_i} exp(D_ij / tau) ),
# S the items whose back is shown, N_i = {i} and every j of another group
def contrastive_cross_entropy(
    similarities: torch.Tensor,
    temperature: float = 1.0,
    group_ids: torch.Tensor | None = None,
    shown: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross entropy over the rows of a similarity matrix, with the diagonal as the target.

    Args:
        similarities: `B x B`.
        temperature: tau > 0.
        group_ids: `B` integers; items of one group are never negatives of each other. None: all are.
        shown: `B` booleans, false where the back was blanked: its row has nothing to find. None: all are shown.

    Returns:
        A scalar: log B where nothing is told apart, towards 0 where every pair is found; 0 where no back is shown.
    """
    logits = similarities / temperature
    if group_ids is not None:
        same_group = group_ids[:, None] == group_ids[None, :]
        others = same_group & ~torch.eye(len(group_ids), dtype=torch.bool, device=group_ids.device)
        logits = logits.masked_fill(others, float("-inf"))
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    return _mean_over(losses, shown)


# L = L_MSE + lambda L_CE
def backshan_loss(
    objective: Objective,
    prediction: torch.Tensor,
    target: torch.Tensor,
    back_features: torch.Tensor | None = None,
    front_features: torch.Tensor | None = None,
    group_ids: torch.Tensor | None = None,
    shown: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The whole loss and its terms, each a scalar, under `loss`, `mse` and, where fronts are compared, `cross_entropy`
    and `pair_accuracy`, which is there to be watched."""
    mse = noise_mse(prediction, target, weights)
    if not objective.contrastive_weight:
        return {"loss": mse, "mse": mse}
    similarities = cosine_matrix(back_features, front_features)
    cross_entropy = contrastive_cross_entropy(similarities, objective.temperature, group_ids, shown)
    return {
        "loss": mse + objective.contrastive_weight * cross_entropy,
        "mse": mse,
        "cross_entropy": cross_entropy,
        "pair_accuracy": pair_accuracy(similarities, shown),
    }


# acc = (1/|S|) #{ i in S : argmax_j D_ij = i }
def pair_accuracy(similarities: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the shown backs whose own front is the most similar one; chance is 1 / B."""
    found = similarities.argmax(dim=1) == torch.arange(len(similarities), device=similarities.device)
    return _mean_over(found.float(), shown)


def _mean_over(values: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """Mean of the chosen ones of some values, 0 if there are none."""
    if chosen is None:
        return values.mean()
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
