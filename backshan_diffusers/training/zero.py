"""DeepSpeed's ZeRO-2: each process has all weights, and a part of the gradients and moments.

DeepSpeed takes over the way back and the step. Gradients are clipped and states are seen whole from outside of it, so
that each model is clipped in its own right, and a checkpoint is the same from any engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from .config import check

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


def check_engine(engine: Accelerator) -> None:
    """Refuse what DeepSpeed could do besides.

    Raises:
        ConfigError: naming it.
    """
    settings = engine.deepspeed_plugin.hf_ds_config
    check(
        settings.is_zero2() and not settings.is_offload(),
        "DeepSpeed has to keep weights whole, and moments on their device: give zero_stage: 2 and no offloading, as"
        " examples/configs/accelerate/deepspeed.yaml does.",
    )
    check(
        engine.mixed_precision != "fp16", "mixed_precision fp16 does not go with DeepSpeed: give bf16, or launch DDP."
    )


class PartedOptimizer:
    """An optimizer whose gradients and moments are parted, with the module whose weights it moves.

    Args:
        module: is moved to the device.
        optimizer: AdamW over its weights that learn; a schedule may go on setting its rates.
        engine: for its settings.

    Attributes:
        module: to be called in place of the one that was given.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, engine: Accelerator):
        import deepspeed  # here, because it is an extra

        self.optimizer = optimizer
        self.weights = [list(group["params"]) for group in optimizer.param_groups]
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # has to be given, and means nothing here
            "zero_optimization": engine.deepspeed_plugin.deepspeed_config["zero_optimization"],
            "zero_allow_untested_optimizer": True,  # it knows its own AdamW better than torch's
            # Not its bf16, which would round the weights. Gradients are exchanged as they are, in float32.
            "torch_autocast": {
                "enabled": engine.mixed_precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
        self.module: DeepSpeedEngine
        self.module, self.parted, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of a loss that `module` gave; with the `last` one of a step the sum is there."""
        self.module.set_gradient_accumulation_boundary(last)
        self.module.backward(loss)

    def clip(self, weights: list[nn.Parameter], max_norm: float) -> torch.Tensor:
        """As torch's `clip_grad_norm_`: the norm of the gradients as they were."""
        from deepspeed.utils import safe_get_full_grad, safe_update_full_grad_vectorized

        norm = torch.stack([safe_get_full_grad(weight).norm() for weight in weights]).norm()
        if norm > max_norm:
            safe_update_full_grad_vectorized(weights, lambda gradient, _: gradient * (max_norm / (norm + 1e-6)))
        return norm

    def step(self) -> None:
        """Move the weights, and forget the gradients."""
        self.module.step()

    def close(self) -> None:
        """Let go of all that this holds; DeepSpeed would keep it for as long as the process lives."""
        self.module.destroy()

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer would say of whole moments; on the first process alone with these moments in it."""
        groups, state = [], {}
        for group, weights in zip(self.optimizer.param_groups, self.weights, strict=True):
            numbers = range(len(state), len(state) + len(weights))
            step = self.optimizer.state[group["params"][0]]["step"]
            groups.append({**group, "params": list(numbers)})
            for number, weight in zip(numbers, weights, strict=True):
                state[number] = {"step": step.clone(), **{name: _whole_moment(weight, name) for name in MOMENTS}}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's part of whole moments. The weights have to be in the module before."""
        from deepspeed.utils import safe_set_full_fp32_param

        for group, weights, saved in zip(
            self.optimizer.param_groups, self.weights, state["param_groups"], strict=True
        ):
            group.update({name: value for name, value in saved.items() if name != "params"})
            (part,) = group["params"]
            moments = [state["state"][number] for number in saved["params"]]
            kept = self.optimizer.state[part]
            kept["step"] = moments[0]["step"].to(part.device)
            # DeepSpeed parts weights only, before its first step: moments go where the weights belong, and then out.
            for name in MOMENTS:
                for weight, of_weight in zip(weights, moments, strict=True):
                    safe_set_full_fp32_param(weight, of_weight[name])
                kept[name] = part.detach().clone()
        self.parted.refresh_fp32_params()


def _whole_moment(weight: nn.Parameter, name: str) -> torch.Tensor | None:
    """On the CPU of the first process; all have to ask for it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moment = safe_get_full_optimizer_state(weight, name)
    return moment.cpu() if PartialState().is_main_process else None
