"""The contrastive term over more pairs than one forward pass holds: other processes' and other micro-batches'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import nn

from ..objective import Objective, contrastive_terms

SMALLEST_TEMPERATURE = 0.01
"""Below it a learned temperature makes the softmax so steep that one pair rules its gradient (as in CLIP)."""


class ComparisonHead(nn.Module):
    """What the comparison learns for itself: a projection of the features, a temperature, both or nothing.

    It is thrown away after training.

    Args:
        objective: says what is learned.
        width: values of one item's features.
    """

    def __init__(self, objective: Objective, width: int):
        super().__init__()
        self.projection = nn.Linear(width, objective.projection_width) if objective.projection_width else None
        learned = objective.contrastive_weight > 0 and objective.learned_temperature
        # One value, but no scalar: FSDP cannot cut up a scalar.
        self.log_temperature = nn.Parameter(torch.tensor([objective.temperature]).log()) if learned else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`B x width` to what is compared."""
        return features if self.projection is None else self.projection(features)

    def temperature(self) -> torch.Tensor | None:
        """The learned tau, or None where it is fixed."""
        return None if self.log_temperature is None else self.log_temperature[0].exp().clamp(min=SMALLEST_TEMPERATURE)


@dataclass(frozen=True)
class Comparison:
    """L_C over all pairs of a step, and its slope at the features that one process, or one micro-batch, made.

    Args:
        terms: what [`contrastive_terms`] gives, of all pairs, without gradients.
        slopes: dL_C / d features, one `B x D` tensor for each of the features that were compared.
        temperature_slope: dL_C / d tau, or None where tau is fixed.
    """

    terms: dict[str, torch.Tensor]
    slopes: list[torch.Tensor]
    temperature_slope: torch.Tensor | None

    def part(self, place: slice) -> Comparison:
        """The same for the items at `place`."""
        return Comparison(self.terms, [slope[place] for slope in self.slopes], self.temperature_slope)

    def carried_by(self, features: list[torch.Tensor], temperature: torch.Tensor | None, shares: int) -> torch.Tensor:
        """L_C as a scalar whose gradient reaches what made `features`.

        Args:
            features: what was compared, now with gradients.
            temperature: the learned tau, or None.
            shares: how many processes and micro-batches carry a share of the slope each; the engine will average
                over them what has to be summed.
        """
        carried = shares * sum((slope * each).sum() for slope, each in zip(self.slopes, features, strict=True))
        if temperature is not None:
            carried = carried + self.temperature_slope * temperature
        return self.terms["contrastive"] + carried - carried.detach()


def compare(
    objective: Objective,
    features: list[torch.Tensor],
    group_ids: torch.Tensor,
    shown: torch.Tensor,
    temperature: torch.Tensor | None = None,
) -> Comparison:
    """L_C over the features of all processes, the same scalar on each, and its slope at this process's own.

    No gradient goes through the exchange: every process computes the whole L_C from the gathered values, and keeps the
    slope at its own rows. Summed over processes these are the gradient of one large batch.

    Args:
        objective: which L_C.
        features: of the backs and, where they are compared, of the fronts: `B x D` each, as many on every process.
        group_ids: `B` integers.
        shown: `B` booleans.
        temperature: the learned tau, or None.
    """
    size, place = len(group_ids), PartialState().process_index
    mine = slice(place * size, (place + 1) * size)
    everywhere = [gather(each.detach().contiguous()).float().requires_grad_(True) for each in features]
    tau = None if temperature is None else temperature.detach().requires_grad_(True)
    back, front = everywhere if len(everywhere) == 2 else (*everywhere, None)
    with torch.enable_grad():
        terms = contrastive_terms(objective, back, front, gather(group_ids), gather(shown.int()).bool(), tau)
    slopes = torch.autograd.grad(terms["contrastive"], everywhere + ([] if tau is None else [tau]))
    return Comparison(
        {name: term.detach() for name, term in terms.items()},
        [slope[mine].to(each.dtype) for slope, each in zip(slopes, features)],
        None if tau is None else slopes[-1],
    )
