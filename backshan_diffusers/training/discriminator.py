"""What tells true fronts from predicted ones while a ControlNet learns; it is thrown away after training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

SLOPE = 0.2
"""Of the leaky rectifiers, as in the discriminators of pix2pix (Isola et al. 2017)."""


class FrontDiscriminator(nn.Module):
    """Scores the patches of a front picture, at three scales, by the picture and the control tensor of its back.

    A patch has a score of its own because many fronts go with a back: what is judged is whether collars, closures and
    fabric look as they do, wherever they are.

    Args:
        control_channels: `K` of the control tensors.
        width: channels at the finest scale; each coarser one has twice as many.
    """

    def __init__(self, control_channels: int, width: int = 48):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.halvings = nn.ModuleList(
            nn.Conv2d(below, wide, 4, stride=2, padding=1)
            for below, wide in zip([3 + control_channels, *widths[:-1]], widths, strict=True)
        )
        self.convolutions = nn.ModuleList(nn.Conv2d(wide, wide, 3, padding=1) for wide in widths)
        # without a bias, which has no effect on differences of scores
        self.heads = nn.ModuleList(nn.Conv2d(wide, 1, 1, bias=False) for wide in widths)
        for layer in (*self.halvings, *self.convolutions):  # torch's own weights let a signal fade from layer to layer
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)

    def forward(self, fronts: torch.Tensor, controls: torch.Tensor) -> list[torch.Tensor]:
        """Scores of the patches at each scale, `B x 1 x S/2 x S/2` and two coarser ones, higher for what looks true.

        Args:
            fronts: `B x 3 x S x S` in [-1, 1].
            controls: `B x K x S x S`.
        """
        hidden, scores = torch.cat([fronts, controls], dim=1), []
        for halving, convolution, head in zip(self.halvings, self.convolutions, self.heads, strict=True):
            hidden = F.leaky_relu(halving(hidden), SLOPE)
            hidden = F.leaky_relu(convolution(hidden), SLOPE)
            scores.append(head(hidden))
        return scores

    def as_it_is(self, fronts: torch.Tensor, controls: torch.Tensor) -> list[torch.Tensor]:
        """The same scores, from which whatever made the fronts learns, and the discriminator does not."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, weights, (fronts, controls))
