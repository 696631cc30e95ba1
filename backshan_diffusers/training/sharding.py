"""Models that the engine has cut up among processes, by FSDP2: their states seen whole, and taken back in shards.

A checkpoint holds whole tensors whatever cut them up, so that it is the same from any engine. In the states of such a
model, of its optimizer and of its averages each tensor is a `DTensor`. All processes together put one together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .checkpoints import Stateful
from .config import TrainingConfig, check
from .stage_module import learning


def check_shardable(config: TrainingConfig, engine: str) -> None:
    """Refuse what cannot be cut up.

    Args:
        config: of a stage.
        engine: the name of what would cut.

    Raises:
        ConfigError: naming it.
    """
    check(
        config.unet_lora_rank is None,
        f"unet_lora_rank does not go with {engine}, which cuts up whole models: launch DDP.",
    )
    check(
        not config.resolve_objective().adversarial_weight,
        f"objective.adversarial_weight does not go with {engine}, which cuts up the discriminator: launch DDP.",
    )
    check(
        config.optimizer == "adamw",
        f"optimizer {config.optimizer} does not go with {engine}: give adamw, or launch DDP.",
    )


class Whole:
    """The state of a model, an optimizer or averages as if nothing were cut up.

    Args:
        owner: whose state it is.
    """

    def __init__(self, owner: Stateful):
        self.owner = owner

    def state_dict(self) -> dict:
        """The whole state, on the first process; the others only give their shards."""
        return _put_together(self.owner.state_dict())

    def load_state_dict(self, state: dict) -> None:
        """Take the shards of this process from a whole state, which every process has to give."""
        self.owner.load_state_dict(_cut(state, self._example()))

    def _example(self) -> dict:
        """What is cut up as the state has to be."""
        if isinstance(self.owner, torch.optim.Optimizer):  # has no moments yet; they are cut as their parameters are
            parameters = [each for group in self.owner.param_groups for each in group["params"]]
            return {"state": dict(enumerate(parameters))}
        return self.owner.state_dict()


def whole_copies(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of models before they are cut up, on the CPU of the first process, which alone draws and saves."""
    return {name: copy.deepcopy(model) for name, model in models.items()} if PartialState().is_main_process else {}


@contextmanager
def averaged_copies(copies: Mapping[str, nn.Module], averages: Mapping[str, EMAModel]) -> Iterator[None]:
    """Within, the copies are on the device with the averaged weights, in evaluation mode."""
    for name, average in averages.items():
        weights = [_put_together(each) for each in average.shadow_params]
        if name in copies:
            for weight, averaged in zip(learning(copies[name]), weights, strict=True):
                weight.data.copy_(averaged)
            copies[name].to(PartialState().device).eval()
    try:
        yield
    finally:
        for model in copies.values():
            model.to("cpu")


def put_together(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put_together(value: Any) -> Any:
    """`value` with whole tensors, on the CPU of the first process; the others keep nothing of them."""
    if isinstance(value, DTensor):
        tensor = put_together(value)
        return tensor.cpu() if PartialState().is_main_process else None
    if isinstance(value, dict):
        return {key: _put_together(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_put_together(each) for each in value]
    return value


def _cut(value: Any, example: Any) -> Any:
    """`value` with those of its tensors cut up that are so in `example`, or are as large as it where it is one."""
    if isinstance(value, dict):
        of = example.get if isinstance(example, dict) else lambda key: example
        return {key: _cut(each, of(key)) for key, each in value.items()}
    if isinstance(value, list) and isinstance(example, list):
        return [_cut(each, like) for each, like in zip(value, example, strict=True)]
    if isinstance(example, DTensor) and value.shape == example.shape:
        whole = value.contiguous().to(example.device)
        return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)
    return value
