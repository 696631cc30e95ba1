"""What of the U-Net `joint` trains, and at which rate: what moves, and what stays to the last bit."""

import copy

import pytest
import torch
from accelerate import Accelerator
from test_stages import control_batch
from tiny import pair_arrays, tiny_config, tiny_pipeline

from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.stages import ControlStage, PriorStage
from backshan_diffusers.training.trainer import StageTrainer, parameter_groups

DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")
ATTENTION = (".attn1.", ".attn2.")


def belongs(name: str, part: str) -> bool:
    """Whether a parameter of the U-Net with that name is in the part."""
    return {
        "decoder": name.startswith(DECODER),
        "attention": any(word in name for word in ATTENTION),
        "all": True,
    }[part]


def control_stage(pipeline, part: str | None) -> ControlStage:
    return ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, PRESETS["mse"], part)


@pytest.mark.parametrize("part", ["decoder", "attention", "all"])
def test_the_unlocked_part_moves_and_the_rest_stays_bit_equal(tmp_path, part):
    pipeline = tiny_pipeline()
    before = {name: copy.deepcopy(getattr(pipeline, name).state_dict()) for name in ("unet", "controlnet")}
    settings = tiny_config(tmp_path, unlock_unet=part, learning_rate=0.01, weight_decay=0.1)
    stage = control_stage(pipeline, part)
    trainer = StageTrainer(Accelerator(), stage, lambda step, sampler: control_batch(), settings, "joint", tmp_path)
    trainer.train(lambda step: None)

    def check(unet):
        moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before["unet"][name])}
        assert moved == {name for name in before["unet"] if belongs(name, part)}

    check(pipeline.unet)
    kept = len(trainer.averages["unet"].shadow_params)
    assert kept == sum(belongs(name, part) for name, _ in pipeline.unet.named_parameters())
    with trainer.averaged_weights():
        check(pipeline.unet)
    moved = pipeline.controlnet.state_dict()
    assert all(not torch.equal(moved[name], tensor) for name, tensor in before["controlnet"].items())


def test_the_run_unlocks_what_its_config_says(tmp_path):
    (tmp_path / "cache").mkdir()
    run = TrainingRun(tiny_config(tmp_path, unlock_unet="attention"))
    for name, learns in (("joint", True), ("controlnet", False)):
        pipeline = tiny_pipeline()
        stage, _ = run.build_stage(name, pipeline, pair_arrays())
        for parameter_name, parameter in stage.component("unet").named_parameters():
            assert parameter.requires_grad == (learns and belongs(parameter_name, "attention"))


def test_the_unet_may_have_a_rate_of_its_own_beside_a_controlnet(tmp_path):
    pipeline = tiny_pipeline()
    stage, own = control_stage(pipeline, "decoder"), tiny_config(tmp_path, unet_learning_rate=2e-6)
    first, second = parameter_groups(stage, own).values()
    assert set(first["params"]) == set(pipeline.controlnet.parameters()) and "lr" not in first
    assert second["lr"] == 2e-6
    assert set(second["params"]) == {p for name, p in pipeline.unet.named_parameters() if belongs(name, "decoder")}
    (whole,) = parameter_groups(stage, tiny_config(tmp_path)).values()
    assert set(whole["params"]) == set(first["params"]) | set(second["params"])
    alone = PriorStage(tiny_pipeline().unet, pipeline.scheduler)
    assert [set(group) for group in parameter_groups(alone, own).values()] == [{"params"}]


def test_each_model_takes_steps_of_its_own_rate(tmp_path):
    """The first step of AdamW moves a weight by its rate, whatever the size of its gradient."""
    pipeline = tiny_pipeline()
    models = {"controlnet": pipeline.controlnet, "unet": pipeline.unet}
    before = {name: model.conv_in.weight.detach().clone() for name, model in models.items()}
    settings = tiny_config(
        tmp_path, learning_rate=0.01, unet_learning_rate=0.001, weight_decay=0.0, max_steps=1, checkpoint_every=1
    )
    stage = control_stage(pipeline, "all")
    trainer = StageTrainer(Accelerator(), stage, lambda step, sampler: control_batch(), settings, "joint", tmp_path)
    trainer.train(lambda step: None)
    for name, rate in (("controlnet", 0.01), ("unet", 0.001)):
        step = (models[name].conv_in.weight.detach() - before[name]).abs().median()
        assert float(step) == pytest.approx(rate, rel=0.02), name
