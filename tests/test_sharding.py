"""Two real processes on gloo whose models are cut up by FSDP, against two that each have the whole of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from tiny import tiny_config
from torch.distributed.tensor import DTensor

from backshan_diffusers.training.run import TrainingRun

STAGE = "joint"
OBJECTIVE = {"preset": "backshan", "learned_temperature": True, "projection_width": 6, "contrastive_warmup_steps": 0}
SETTINGS = {
    "objective": OBJECTIVE,
    "gradient_accumulation_steps": 2,
    "cached_contrast": True,
    "validation_pairs": 1,
    "max_grad_norm": 0.05,
}
WRAPPED = ["ResnetBlock2D"]


def cut_models_up(whether: bool) -> None:
    """What `accelerate launch` with fsdp.yaml does on GPUs. On CPUs accelerate leaves models whole, but torch can."""
    Accelerator()
    kind = DistributedType.FSDP if whether else DistributedType.MULTI_CPU
    PartialState().distributed_type = AcceleratorState().distributed_type = kind
    AcceleratorState().fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=WRAPPED
    )


def train(folder: Path, cut_up: bool, **changes) -> None:
    cut_models_up(cut_up)
    TrainingRun(tiny_config(folder, cache_dir=str(folder.parent / "cache"), **SETTINGS, **changes)).run()


def process(home: Path) -> None:
    """What each of the two processes does."""
    train(home / "whole", False)
    train(home / "cut", True)


if __name__ == "__main__":
    process(Path(sys.argv[1]))
