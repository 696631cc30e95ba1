"""The contrastive term over more pairs than one forward pass holds: other processes' and other micro-batches'."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import nn

from ..objective import SMALLEST_TEMPERATURE, Objective, contrastive_terms


class ComparisonHead(nn.Module):
    """What the comparison learns for itself: a projection of the features, a temperature, both or nothing.

    It is thrown away after training.

    Args:
        objective: says what is learned.
        width: values of one item's features.
    """

    def __init__(self, objective: Objective, width: int):
        super().__init__()
        # What no loss reaches must not be there: DDP would wait for its gradient.
        compares = objective.contrastive_weight > 0
        projects, learned = compares and objective.projection_width, compares and objective.learned_temperature
        self.projection = nn.Linear(width, objective.projection_width) if projects else None
        # One value, but no scalar: FSDP cannot cut up a scalar.
        self.log_temperature = nn.Parameter(torch.tensor([objective.temperature]).log()) if learned else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`B x width` to what is compared."""
        return features if self.projection is None else self.projection(features)

    def temperature(self) -> torch.Tensor | None:
        """The learned tau, or None where it is fixed.

        It is the weight that is held above the floor, as in CLIP: below it, a floor of the result has no slope that
        would lead back.
        """
        if self.log_temperature is None:
            return None
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(SMALLEST_TEMPERATURE))
        return self.log_temperature[0].exp()


@dataclass(frozen=True)
class Comparison:
    """L_C over all pairs of a step, and its slope at the features that one process, or one micro-batch, made.

    Args:
        terms: what [`contrastive_terms`] gives, of all pairs, without gradients.
        slopes: dL_C / d features, one `B x D` float32 tensor for each of the features that were compared. Most of them
            are too small for float16.
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
        carried = shares * sum((slope * each.float()).sum() for slope, each in zip(self.slopes, features, strict=True))
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
        [slope[mine] for slope in slopes[: len(features)]],
        None if tau is None else slopes[-1],
    )
