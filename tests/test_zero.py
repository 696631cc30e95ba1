"""Two real processes on gloo, of whose moments DeepSpeed leaves each a half, against two that have them whole."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from safetensors.torch import load_file
from test_sharding import ACCELERATE, SETTINGS
from tiny import tiny_config, tiny_pipeline
from two_processes import assert_bit_identical, assert_close, launch, log, turn_back

from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.zero import check_engine

pytestmark = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the extra deepspeed")


def part_moments(whether: bool) -> None:
    """What `accelerate launch` does with deepspeed.yaml; but on a CPU only we can do it, not accelerate."""
    settings = yaml.safe_load((ACCELERATE / "deepspeed.yaml").read_text())["deepspeed_config"]
    kind = DistributedType.DEEPSPEED if whether else DistributedType.MULTI_CPU
    PartialState().distributed_type = AcceleratorState().distributed_type = kind
    plugin = DeepSpeedPlugin(**settings)
    plugin.set_mixed_precision(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    plugin.select(_from_accelerator_state=True)
    AcceleratorState().deepspeed_plugins = plugin


def train(folder: Path, parted: bool) -> None:
    part_moments(parted)
    home = folder.parent
    TrainingRun(tiny_config(folder, cache_dir=str(home / "cache"), base_model=str(home / "base"), **SETTINGS)).run()
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each).__name__ == "DeepSpeedEngine"]


def process(home: Path) -> None:
    """What each of the two processes does."""
    engine = Accelerator()
    train(home / "whole", False)
    train(home / "parted", True)
    if engine.mixed_precision != "no":
        return engine.end_training()
    if engine.is_main_process:
        turn_back(home / "parted")
        turn_back(home / "whole")
    engine.wait_for_everyone()
    train(home / "parted resumed", True)
    train(home / "parted resumed otherwise", False)
    train(home / "whole resumed otherwise", True)
    return engine.end_training()


def launch_with_deepspeed(home: Path, **environment: str) -> None:
    """Two processes of this file."""
    tiny_pipeline().save_pretrained(home / "base")
    launch(__file__, home, DS_ACCELERATOR="cpu", **environment)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    launch_with_deepspeed(folder)
    return folder


@pytest.mark.parametrize("stage", ["vae", "joint"])
@pytest.mark.parametrize("name", ["parted", "parted resumed otherwise", "whole resumed otherwise"])
def test_parted_moments_move_weights_as_whole_ones_do(home, name, stage):
    """Also where one kind goes on from a checkpoint of the other."""
    assert_close(home / name / stage, home / "whole" / stage)


def test_a_resumed_run_with_parted_moments_is_bit_identical(home):
    assert_bit_identical(home / "parted resumed" / "joint", home / "parted" / "joint")


def test_in_half_precision_the_weights_stay_float32(home, tmp_path):
    launch_with_deepspeed(tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    parted, whole = tmp_path / "parted" / "joint", tmp_path / "whole" / "joint"
    losses = [[line["mse"] for line in log(stage)] for stage in (parted, whole, home / "parted" / "joint")]
    assert losses[0][0] == losses[1][0] != losses[2][0]  # later ones differ by what is rounded otherwise
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name in ("model", "optimizer"):
        tensors = load_file(parted / "checkpoint-4" / f"{name}.safetensors")
        assert {each.dtype for each in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("settings", [{"zero_stage": 3}, {"zero_stage": 2, "offload_optimizer_device": "cpu"}])
def test_what_else_deepspeed_can_do_is_refused(monkeypatch, settings):
    monkeypatch.setattr(Accelerator, "deepspeed_plugin", DeepSpeedPlugin(**settings))
    with pytest.raises(ConfigError, match="give zero_stage: 2 and no offloading, as examples/.*deepspeed.yaml does"):
        check_engine(Accelerator())


def test_float16_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "deepspeed_plugin", DeepSpeedPlugin(zero_stage=2))
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(ConfigError, match="mixed_precision fp16 does not go with DeepSpeed: give bf16"):
        check_engine(Accelerator())


if __name__ == "__main__":
    process(Path(sys.argv[1]))
