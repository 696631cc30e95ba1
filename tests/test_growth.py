"""A U-Net and a ControlNet with more layers: that they compute what they did, and can learn what they could not."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from test_stages import control_batch, control_stage
from tiny import tiny_config, tiny_pipeline

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.objective import Objective
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.growth import grow
from backshan_diffusers.training.run import TrainingRun


def grown(*layers: int, seed: int = 1) -> BackToFrontPipeline:
    """A pipeline whose weights all count, grown to each of the numbers of layers in turn."""
    pipeline = tiny_pipeline()
    for count in layers:
        grow(pipeline, count, seed)
        generator = torch.Generator().manual_seed(count)
        for model in (pipeline.unet, pipeline.controlnet):
            with torch.no_grad():
                for weight in model.parameters():
                    weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return pipeline


def predicted(pipeline: BackToFrontPipeline) -> torch.Tensor:
    batch = control_batch()
    stage = control_stage(Objective(), pipeline=pipeline)
    with torch.no_grad():
        return stage._predict(batch["latents"], batch, stage._control(batch, batch["latents"])[0])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (1, 3), (2, 3), (2, 5), (3, 4)])
def test_a_grown_pipeline_computes_what_it_did(before, after):
    pipeline = grown(before)
    expected = predicted(pipeline)
    grow(pipeline, after, seed=3)
    assert pipeline.unet.config.layers_per_block == pipeline.controlnet.config.layers_per_block == after
    torch.testing.assert_close(predicted(pipeline), expected, rtol=1e-4, atol=1e-4)
    for block in pipeline.controlnet.controlnet_down_blocks:
        with torch.no_grad():
            block.weight.zero_()
    assert not torch.allclose(predicted(pipeline), expected, atol=1e-2)  # so that residuals counted


def test_every_weight_that_was_there_is_there():
    """In a permutation of names; what comes on top is that of new layers."""
    pipeline = grown(2)
    before = [model.state_dict().values() for model in (pipeline.unet, pipeline.controlnet)]
    grow(pipeline, 3, seed=3)
    for old, model in zip(before, (pipeline.unet, pipeline.controlnet), strict=True):
        sums = {round(value.double().sum().item(), 9) for value in model.state_dict().values()}
        assert {round(value.double().sum().item(), 9) for value in old} <= sums


def test_new_layers_learn():
    pipeline = grown(1)
    old = {id(weight) for model in (pipeline.unet, pipeline.controlnet) for weight in model.parameters()}
    grow(pipeline, 2, seed=3)
    stage, batch = control_stage(Objective(), pipeline=pipeline), control_batch()
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-2)
    for _ in range(2):  # a layer whose last convolution is zero hears of the loss only once that has learned
        optimizer.zero_grad()
        stage(batch)["loss"].backward()
        optimizer.step()
    for name, weight in stage.trained.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name
    assert not old & {id(weight) for weight in stage.trained.parameters()}


def test_new_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = (grown(2, seed=seed).unet.up_blocks[0].resnets[1].conv1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_recorded_stays():
    pipeline = tiny_pipeline("canny+rgb", mirror=False, default_prompt="a front")
    before = dict(pipeline.controlnet.config)
    grow(pipeline, 2, seed=0)
    assert isinstance(pipeline.controlnet, BackshanControlNetModel)
    assert dict(pipeline.controlnet.config) | {"layers_per_block": 1} == before


def test_a_base_that_leaves_the_number_to_its_class_grows():
    pipeline = tiny_pipeline()
    for model in (pipeline.unet, pipeline.controlnet):
        model.register_to_config(_use_default_values=["layers_per_block"])
    grow(pipeline, 3, seed=0)
    assert pipeline.unet.config.layers_per_block == pipeline.controlnet.config.layers_per_block == 3


@pytest.mark.parametrize(
    ("changes", "layers", "message"),
    [
        ({}, 0, "layers_per_block is 0 and the base_model has 1: give as many or more"),
        ({"layers_per_block": (1, 2)}, 3, r"lists its layers block by block \(.1, 2.\): leave it out"),
        ({"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, 3, "the base_model has AttnUpBlock2D: leave it out"),
        ({"resnet_out_scale_factor": 2.0}, 3, "scales its layers by 2.0: leave it out"),
    ],
)
def test_a_base_that_cannot_grow_so_is_refused(changes, layers, message):
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(**changes)
    with pytest.raises(ConfigError, match=message):
        grow(pipeline, layers, seed=0)


def test_a_run_grows_its_base_and_leaves_it_as_it_was(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "base")
    config = tiny_config(
        tmp_path / "run",
        base_model=str(tmp_path / "base"),
        model=ModelSize(),
        layers_per_block=2,
        stages={"controlnet": {}, "joint": {}},
    )
    finished = TrainingRun(config).run()
    for folder, layers in ((tmp_path / "base", 1), (finished, 2)):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        controlnet = ControlNetModel.from_pretrained(folder, subfolder="controlnet")
        assert unet.config.layers_per_block == controlnet.config.layers_per_block == layers
    assert TrainingRun(config).run() == finished
