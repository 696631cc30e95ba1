"""Two real processes on gloo, of whose models FSDP leaves each a half, against two that have the whole of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from test_stages import MID, control_stage
from tiny import tiny_config, tiny_pipeline

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.training.checkpoints import checkpoint_path, find_damage
from backshan_diffusers.training.config import ConfigError, ModelSize, TrainingConfig
from backshan_diffusers.training.run import Previews, TrainingRun
from backshan_diffusers.training.sharding import check_shardable
from backshan_diffusers.training.trainer import StageTrainer

ROOT = Path(__file__).parents[1]
ACCELERATE = ROOT / "examples" / "configs" / "accelerate"
TRAINING_PAGE = ROOT / "docs" / "training.md"
SETTINGS = {
    "model": ModelSize(),
    "stages": {"vae": {"max_steps": 2}, "joint": {}},
    "objective": {
        "preset": "backshan",
        "contrastive_warmup_steps": 0,
        "learned_temperature": True,
        "projection_width": 6,
        "front_gradient": False,
    },
    "unlock_unet": "attention",
    "gradient_accumulation_steps": 2,
    "cached_contrast": True,
    "max_grad_norm": 0.05,
    "validation_pairs": 1,
}


UNLIKE = (
    "stage",
    "doubt",
    "images_per_second",
    "peak_memory_mib",
    "grad_norm_mse",
    "grad_norm_contrast",
    "grad_norm_ratio",
)
"""What is no number, what no two runs have in common, and what is not probed of cut-up models."""


def cut_models_up(whether: bool) -> None:
    """What `accelerate launch` does with fsdp.yaml; but on a CPU only torch can do it, not accelerate."""
    settings = yaml.safe_load((ACCELERATE / "fsdp.yaml").read_text())["fsdp_config"]
    kind = DistributedType.FSDP if whether else DistributedType.MULTI_CPU
    PartialState().distributed_type = AcceleratorState().distributed_type = kind
    AcceleratorState().fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
    )
    AcceleratorState().fsdp_plugin.set_mixed_precision("bf16")  # as accelerate would; no rounding may come of it


def train(folder: Path, cut_up: bool, previews: Previews | None = None) -> None:
    cut_models_up(cut_up)
    home = folder.parent
    config = tiny_config(folder, cache_dir=str(home / "cache"), base_model=str(home / "base"), **SETTINGS)
    TrainingRun(config, previews).run()


def process(home: Path) -> None:
    """What each of the two processes does."""
    engine = Accelerator()

    def write_preview(stage: str, step: int, write: Callable[[Path], None]) -> None:
        assert engine.is_main_process
        write(home / "previews" / f"{stage}-{step}")

    train(home / "whole", False)
    train(home / "cut", True, Previews(1, write_preview))
    if engine.is_main_process:
        for name in ("cut", "whole"):
            run = shutil.copytree(home / name, home / f"{name} resumed")
            shutil.rmtree(run / "joint" / "pipeline")
            shutil.rmtree(run / "joint" / "checkpoint-4")
            shutil.copytree(run, home / f"{name} resumed otherwise")
    engine.wait_for_everyone()
    train(home / "cut resumed", True)
    train(home / "cut resumed otherwise", False)
    train(home / "whole resumed otherwise", True)
    engine.end_training()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_pipeline().save_pretrained(folder / "base")
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, env=os.environ | environment, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["cpu", "one-gpu", "ddp", "deepspeed", "fsdp"])
def test_accelerate_reads_the_configs_which_say_when_to_use_them(name):
    path = ACCELERATE / f"{name}.yaml"
    read = load_config_from_file(str(path))
    assert read.num_processes == (1 if name in ("cpu", "one-gpu") else 2) and read.use_cpu == (name == "cpu")
    assert read.fsdp_config.get("fsdp_version") == (2 if name == "fsdp" else None)
    assert read.deepspeed_config.get("zero_stage") == (2 if name == "deepspeed" else None)
    assert path.read_text().startswith("# ")
    assert f"`{path.name}`" in TRAINING_PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_what_cannot_be_cut_up_is_refused(engine):
    check_shardable(TrainingConfig("runs"), engine)
    with pytest.raises(ConfigError, match=f"optimizer adamw8bit does not go with {engine}: give adamw, or launch DDP"):
        check_shardable(TrainingConfig("runs", optimizer="adamw8bit", channels_last=False), engine)
    with pytest.raises(ConfigError, match=f"unet_lora_rank does not go with {engine}, .*: launch DDP"):
        check_shardable(TrainingConfig("runs", unet_lora_rank=4), engine)


def log(stage: Path) -> list[dict]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in UNLIKE} for line in lines]


def files(stage: Path) -> list[Path]:
    return sorted(path.relative_to(stage) for path in stage.rglob("*") if path.suffix in (".safetensors", ".json"))


def assert_close(stage: Path, other: Path) -> None:
    """Equal but for the order in which sums are taken: losses, norms, weights, moments, averages."""
    assert len(log(stage)) == len(log(other))
    for ours, theirs in zip(log(stage), log(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-6)
    assert files(stage) == files(other)
    for path in files(stage):
        if path.suffix == ".safetensors":
            torch.testing.assert_close(load_file(stage / path), load_file(other / path), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", ["vae", "joint"])
@pytest.mark.parametrize("name", ["cut", "cut resumed otherwise", "whole resumed otherwise"])
def test_cut_up_models_learn_what_whole_ones_do(home, name, stage):
    """Also where one kind goes on from a checkpoint of the other."""
    assert_close(home / name / stage, home / "whole" / stage)


def test_a_resumed_run_of_cut_up_models_is_bit_identical(home):
    resumed, whole = home / "cut resumed" / "joint", home / "cut" / "joint"
    assert log(resumed) == log(whole) and len(log(whole)) == 4
    assert files(resumed) == files(whole)
    for path in files(whole):
        if path.suffix == ".safetensors" or path.name == "values.json":
            assert (resumed / path).read_bytes() == (whole / path).read_bytes(), path


def test_cut_up_models_are_validated_and_saved_whole(home):
    before, after = (BackToFrontPipeline.from_pretrained(home / name) for name in ("base", "cut/joint/pipeline"))
    assert not torch.equal(after.controlnet.conv_in.weight, before.controlnet.conv_in.weight)
    tables = [(home / name / "joint" / "validation.csv").read_text().splitlines() for name in ("cut", "whole")]
    cut, whole = ([float(value) for value in table[-1].split(",")] for table in tables)
    assert cut == pytest.approx(whole, abs=1e-4, rel=1e-3)
    assert find_damage(home / "cut" / "joint" / "checkpoint-4") is None


def test_previews_of_cut_up_models_are_whole(home):
    """The run that was resumed made none, and its weights are those of this one."""
    previews = home / "previews"
    assert sorted(path.name for path in previews.iterdir()) == ["joint-2", "joint-4", "vae-2"]
    for preview, finished in (("joint-4", "joint"), ("vae-2", "vae")):
        for path in (home / "cut" / finished / "pipeline").rglob("*.safetensors"):
            shown = previews / preview / path.relative_to(home / "cut" / finished / "pipeline")
            assert shown.read_bytes() == path.read_bytes(), shown


def test_one_process_goes_on_from_the_checkpoint_of_cut_up_models(home):
    """The states are whole; a run refuses it all the same, because its batches would be others."""
    objective = replace(MID, learned_temperature=True, projection_width=6)
    stage = control_stage(objective, "attention", tiny_pipeline(seed=9))
    settings = tiny_config(home / "cut", base_model=str(home / "base"), **SETTINGS)
    folder = shutil.copytree(home / "cut" / "joint", home / "alone")
    trainer = StageTrainer(Accelerator(), stage, None, settings.stage("joint"), "joint", folder)
    assert trainer.step == 4
    saved = load_file(checkpoint_path(folder, 4) / "model.safetensors")
    for name, tensor in stage.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"])


if __name__ == "__main__":
    process(Path(sys.argv[1]))
