"""What every stage is to the trainer: a loss with the models it trains, one module, so that any engine can wrap it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers import ModelMixin
from torch import nn

from .contrast import Comparison

Batch = dict[str, torch.Tensor]
"""What a micro-batch of `B` pairs holds, by name; `S` is a picture's or crop's side in px, `h` that of its latents.

    every stage         items `B` int64; noise, of the shape of the latents
    vae                 pixels `2B x 3 x S x S` in [-1, 1], weights `2B x 1 x S x S`
    all other stages    latents `B x C x h x h`, prompts `B x T x E`, timesteps `B` int64; weights `B x 1 x h x h`
                        where not all cells count alike; place_weights, likewise, the same without `unseen_weight`,
                        where not all cells count alike then
    controlnet, joint   back_control `B x K x S x S`, a control tensor, see `conditioning.py`
    with an anchor      coarse_weight, a scalar
    with an adversary   adversarial_weight, a scalar; fronts `B x 3 x S x S` in [-1, 1]; disturbance, likewise, for
                        every `DISTURBED`th of the true and of the predicted fronts; first_noise, as noise, for
                        the items that are predicted from noise alone before
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
