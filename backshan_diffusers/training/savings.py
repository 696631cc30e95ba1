"""What makes a step cheaper: types, recomputed activations, compiled blocks, the optimizer, the averages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from .config import TrainingConfig, check
from .stage_module import StageModule

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in, by accelerate's name of the mixed precision."""

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Where torch has AdamW as one kernel."""

EIGHT_BIT_BLOCK = 256
"""Values of a moment that share a scale in bitsandbytes."""

EIGHT_BIT_MINIMUM = 4096
"""Tensors with fewer values keep moments in float32 there."""


class AveragedWeights(EMAModel):
    """diffusers' averaged weights with less memory in use.

    The parent's step makes two temporary tensors for each weight: on a CPU that took longer than AdamW. To show the
    averages it keeps a second copy of all weights; here the two change places.
    """

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the averages towards the weights."""
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, [each.detach() for each in parameters], 1 - self.cur_decay_value)

    @torch.no_grad()
    def change_places(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the averages where the weights are, and the weights where the averages are; twice, all is as before."""
        for average, weight in zip(self.shadow_params, parameters, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def check_machine(config: TrainingConfig) -> None:
    """Refuse options for which this machine lacks something.

    Raises:
        ConfigError: naming what to install.
    """
    stages = [config.stage(name) for name in config.stage_names()]
    check(
        all(stage.optimizer != "adamw8bit" for stage in stages) or find_spec("bitsandbytes"),
        "optimizer adamw8bit needs bitsandbytes: pip install backshan_diffusers[adam8bit], or give adamw.",
    )
    compiler = os.environ.get("CXX", "g++")
    check(
        all(stage.compile != "inductor" for stage in stages) or shutil.which(compiler),
        f"compile inductor needs a C++ compiler and there is no {compiler}: install one, or name yours in CXX.",
    )


def autocast(accelerator: Accelerator) -> torch.autocast:
    """Within, each operation computes in the engine's precision or in float32, as suits it.

    accelerate's own does nothing under DeepSpeed, which would see to the step alone.
    """
    half = HALF_TYPES.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, half, enabled=half is not None)


def round_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Keep what does not learn of a model in the type that the engine computes in.

    In float32 it would take twice the memory, and autocast would convert it in every step.
    """
    kept = HALF_TYPES.get(accelerator.mixed_precision, torch.float32)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(kept)


def save_activations(module: StageModule) -> None:
    """Let a stage's models keep the inputs of their blocks alone, and compute the rest anew on the way back."""
    for model in module.models():
        model.enable_gradient_checkpointing()


def compile_blocks(module: StageModule, backend: str) -> None:
    """Compile the attention blocks of a stage's models, in place, so that no weight changes its name."""
    for model in module.models():
        if getattr(model, "_repeated_blocks", None):  # an autoencoder has none
            model.compile_repeated_blocks(backend=backend)


def new_optimizer(groups: list[dict], config: TrainingConfig, accelerator: Accelerator) -> torch.optim.Optimizer:
    """AdamW as the config says."""
    values = {"lr": config.learning_rate, "betas": (config.adam_beta1, 0.99), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # here, because it is an extra

        return AdamW8bit(groups, min_8bit_size=EIGHT_BIT_MINIMUM, **values)
    # A fused step skips itself where a scaled gradient overflowed, and accelerate would not hear of it.
    fused = accelerator.device.type in FUSED_DEVICES and accelerator.scaler is None
    return torch.optim.AdamW(groups, fused=fused, **values)


def optimizer_bytes(parameters: Iterable[nn.Parameter], optimizer: str) -> int:
    """Bytes of the two moments of what learns."""
    total = 0
    for count in (parameter.numel() for parameter in parameters):
        if optimizer == "adamw8bit" and count >= EIGHT_BIT_MINIMUM:
            total += 2 * (count + 4 * -(-count // EIGHT_BIT_BLOCK))
        else:
            total += 2 * 4 * count
    return total
