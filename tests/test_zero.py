"""Two real processes on gloo, to each of which DeepSpeed leaves a half of the moments, against two that have them whole."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from test_sharding import ACCELERATE, SETTINGS, assert_close, files, log
from tiny import tiny_config, tiny_pipeline

from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.run import TrainingRun

pytestmark = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the extra deepspeed")


def part_moments(whether: bool, **changed) -> None:
    """What `accelerate launch` does with deepspeed.yaml; but on a CPU only we can do it, not accelerate."""
    settings = yaml.safe_load((ACCELERATE / "deepspeed.yaml").read_text())["deepspeed_config"]
    kind = DistributedType.DEEPSPEED if whether else DistributedType.MULTI_CPU
    PartialState().distributed_type = AcceleratorState().distributed_type = kind
    plugin = DeepSpeedPlugin(**settings | changed)
    plugin.set_mixed_precision(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    plugin.select(_from_accelerator_state=True)
    AcceleratorState().deepspeed_plugins = plugin


def train(folder: Path, parted: bool, **changed) -> None:
    part_moments(parted)
    home = folder.parent
    settings = {"cache_dir": str(home / "cache"), "base_model": str(home / "base"), **SETTINGS, **changed}
    TrainingRun(tiny_config(folder, **settings)).run()


def process(home: Path) -> None:
    """What each of the two processes does."""
    engine = Accelerator()
    train(home / "whole", False)
    train(home / "parted", True)
    if engine.is_main_process:
        for name in ("parted", "whole"):
            run = shutil.copytree(home / name, home / f"{name} resumed")
            shutil.rmtree(run / "joint" / "pipeline")
            shutil.rmtree(run / "joint" / "checkpoint-4")
            shutil.copytree(run, home / f"{name} resumed otherwise")
    engine.wait_for_everyone()
    train(home / "parted resumed", True)
    train(home / "parted resumed otherwise", False)
    train(home / "whole resumed otherwise", True)
    engine.end_training()


def launch(home: Path, **environment: str) -> None:
    """Two processes of this file."""
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    tiny_pipeline().save_pretrained(home / "base")
    done = subprocess.run(
        [*command, str(home)], capture_output=True, text=True, env=os.environ | environment, timeout=900
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    launch(folder)
    return folder


@pytest.mark.parametrize("stage", ["vae", "joint"])
@pytest.mark.parametrize("name", ["parted", "parted resumed otherwise", "whole resumed otherwise"])
def test_parted_moments_move_weights_as_whole_ones_do(home, name, stage):
    """Also where one kind goes on from a checkpoint of the other."""
    assert_close(home / name / stage, home / "whole" / stage)


def test_a_resumed_run_with_parted_moments_is_bit_identical(home):
    resumed, whole = home / "parted resumed" / "joint", home / "parted" / "joint"
    assert log(resumed) == log(whole) and len(log(whole)) == 4
    assert files(resumed) == files(whole)
    for path in files(whole):
        if path.suffix == ".safetensors" or path.name == "values.json":
            assert (resumed / path).read_bytes() == (whole / path).read_bytes(), path


if __name__ == "__main__":
    process(Path(sys.argv[1]))
