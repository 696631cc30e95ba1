"""What is measured of a stage now and then, because it costs passes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import reduce
from torch.distributed.tensor import DTensor

from .stage_module import Batch, StageModule, Terms

AS_GOOD = 0.9
"""A blank back does as well as the real one if its pair accuracy is at least this share of the real one's: of a batch
of 16 that is found as a whole, one pair is missed by chance."""


def probe_stage(module: StageModule, batch: Batch) -> Terms:
    """How hard each of the loss's two terms pulls, and what the stage itself can tell. Changes nothing.

    `grad_norm_mse` and `grad_norm_contrast` are the norms of the gradients of what each term adds to the loss, over
    the weights at which both pull; `grad_norm_ratio` is the second over the first. They are left out where FSDP has
    cut the weights up: it hands out their gradients in the step alone, and where the batch compares nothing, as one
    pair does: with `cached_contrast` the step compares more.

    Args:
        module: the stage, not wrapped; on every process, since the contrastive term is one of all of them.
        batch: on the device.
    """
    contested = module.contested()
    if not contested or any(isinstance(weight, DTensor) for weight in contested):
        return module.probe(batch)
    # further terms, which are none of the two
    batch = batch | {name: torch.zeros(()) for name in ("adversarial_weight", "coarse_weight")}
    # A pass for each term: compiled models keep nothing for a second way back.
    mse = _gradient_norm(module(batch)["mse"], contested)
    terms = module(batch)
    contrast = _gradient_norm(terms["loss"] - terms["mse"], contested)
    if terms["contrastive"] == 0:
        return {"grad_norm_mse": mse} | module.probe(batch)
    norms = {"grad_norm_mse": mse, "grad_norm_contrast": contrast, "grad_norm_ratio": contrast / mse}
    return norms | module.probe(batch)


def _gradient_norm(term: torch.Tensor, weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    gradients = torch.autograd.grad(term, weights, allow_unused=True)
    return torch.nn.utils.get_total_norm([reduce(each, "mean") for each in gradients if each is not None])


def doubt(terms: Mapping[str, float]) -> str | None:
    """A sentence where the probe shows that the fronts are found without a look at the backs.

    Args:
        terms: of a line of the log.
    """
    if "pair_accuracy_blank_back" not in terms:
        return None
    real, blank = terms["pair_accuracy_real_back"], terms["pair_accuracy_blank_back"]
    if blank < AS_GOOD * real:
        return None
    return (
        f"a blank back finds its front as well as the real one does (pair accuracy {blank:.2f} and {real:.2f}), so the"
        " cross entropy teaches nothing of the backs: change objective.front_latents or objective.timesteps if this"
        " stays."
    )
