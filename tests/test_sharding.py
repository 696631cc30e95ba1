"""Two real processes on gloo, of whose models FSDP leaves each a half, against two that have the whole of them."""

import shutil
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
from two_processes import assert_bit_identical, assert_close, launch, turn_back

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
        turn_back(home / "cut")
        turn_back(home / "whole")
    engine.wait_for_everyone()
    train(home / "cut resumed", True)
    train(home / "cut resumed otherwise", False)
    train(home / "whole resumed otherwise", True)
    engine.end_training()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_pipeline().save_pretrained(folder / "base")
    launch(__file__, folder)
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
    with pytest.raises(ConfigError, match=f"adversarial_weight does not go with {engine}, .*: launch DDP"):
        check_shardable(TrainingConfig("runs", objective={"preset": "mse", "adversarial_weight": 1.0}), engine)


@pytest.mark.parametrize("stage", ["vae", "joint"])
@pytest.mark.parametrize("name", ["cut", "cut resumed otherwise", "whole resumed otherwise"])
def test_cut_up_models_learn_what_whole_ones_do(home, name, stage):
    """Also where one kind goes on from a checkpoint of the other."""
    assert_close(home / name / stage, home / "whole" / stage)


def test_a_resumed_run_of_cut_up_models_is_bit_identical(home):
    assert_bit_identical(home / "cut resumed" / "joint", home / "cut" / "joint")


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
