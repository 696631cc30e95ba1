"""A U-Net and a ControlNet with wider levels: that they compute what they did, and can learn what they could not."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from test_stages import control_batch, control_stage
from tiny import TINY, tiny_config, tiny_pipeline, wake

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.objective import Objective
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.growth import grow
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import build_pipeline
from backshan_diffusers.training.widening import widen


def trained(layers: int = 1, channels: tuple[int, ...] = TINY.unet_channels) -> BackToFrontPipeline:
    """A pipeline all of whose weights count, and none is like another; its last level attends."""
    attention = tuple(level == len(channels) - 1 for level in range(len(channels)))
    pipeline = build_pipeline(replace(TINY, unet_channels=channels, unet_attention=attention), seed=0)
    wake(pipeline.controlnet)
    grow(pipeline, layers, seed=1)
    generator = torch.Generator().manual_seed(layers)
    for model in (pipeline.unet, pipeline.controlnet):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return pipeline


def outputs(pipeline: BackToFrontPipeline) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The residuals of ControlNet, and what the U-Net predicts with them."""
    batch, stage = control_batch(), control_stage(Objective(), pipeline=pipeline)
    with torch.no_grad():
        residuals = stage._control(batch, batch["latents"])[0]
        down = list(residuals.down_block_res_samples)
        return [*down, residuals.mid_block_res_sample], stage._predict(batch["latents"], batch, residuals)


def without_joint_norms(pipeline: BackToFrontPipeline) -> None:
    """Let nothing be normalised together with something of another origin."""
    for block in pipeline.unet.up_blocks:
        for resnet in block.resnets:
            resnet.norm1.forward = lambda hidden: hidden


@pytest.mark.parametrize(
    ("layers", "channels", "widths"),
    [
        (1, (8, 16), (8, 16)),
        (1, (8, 16), (24, 16)),
        (3, (8, 16), (24, 16)),
        (2, (8, 16, 24), (16, 64, 24)),
        (1, (8, 16, 24), (8, 32, 24)),
        (1, (8, 16, 16), (24, 16, 16)),
        (1, (8, 8, 16), (8, 24, 16)),  # a layer between levels of one width has no weights before, and some after
    ],
)
def test_what_is_normalised_as_before_is_computed_as_before(layers, channels, widths):
    pipeline = trained(layers, channels)
    without_joint_norms(pipeline)
    before, expected = outputs(pipeline)
    widen(pipeline, widths, seed=3)
    without_joint_norms(pipeline)
    assert tuple(pipeline.unet.config.block_out_channels) == widths
    assert tuple(pipeline.controlnet.config.block_out_channels) == widths
    after, found = outputs(pipeline)
    for old, new in zip(before, after, strict=True):
        assert new.shape[1] in widths
        torch.testing.assert_close(new, old.repeat_interleave(new.shape[1] // old.shape[1], 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.05
    for block in pipeline.controlnet.controlnet_down_blocks:
        with torch.no_grad():
            block.weight.zero_()
    assert not torch.allclose(outputs(pipeline)[1], expected, atol=1e-2)  # so that residuals counted


def test_norms_of_channels_from_two_origins_keep_their_scales():
    pipeline = trained()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    widen(pipeline, (24, 16), seed=3)
    for kind in ("weight", "bias"):
        old, new = (each[f"up_blocks.1.resnets.0.norm1.{kind}"] for each in (before, pipeline.unet.state_dict()))
        assert torch.equal(new, torch.cat([old[:16], old[16:].repeat_interleave(3)]))


def test_the_whole_is_nearly_what_it_was():
    pipeline = trained()
    expected = outputs(pipeline)[1]
    widen(pipeline, (24, 16), seed=3)
    error = (outputs(pipeline)[1] - expected).square().mean() / expected.var()
    assert 0 < error < 0.1


def test_widths_that_are_no_multiples_begin_as_copies_too():
    """Of each group of a norm some channels are there twice."""
    pipeline = trained(channels=(8, 16, 32))
    before, expected = pipeline.controlnet.down_blocks[1].resnets[0].norm2.weight, outputs(pipeline)[1]
    widen(pipeline, (16, 24, 32), seed=3)
    copies = [4 * group + place for group in range(4) for place in (0, 0, 1, 2, 2, 3)]
    assert torch.equal(pipeline.controlnet.down_blocks[1].resnets[0].norm2.weight, before[copies])
    assert (outputs(pipeline)[1] - expected).square().mean() < 0.2 * expected.var()


def test_copies_part_as_they_learn():
    pipeline = trained()
    old = {id(weight) for model in (pipeline.unet, pipeline.controlnet) for weight in model.parameters()}
    widen(pipeline, (24, 16), seed=3)
    stage, batch = control_stage(Objective(), pipeline=pipeline), control_batch()
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-2)
    first = pipeline.unet.conv_in.weight.clone()
    assert torch.equal(first[0], first[1])
    stage(batch)["loss"].backward()
    optimizer.step()
    after = pipeline.unet.conv_in.weight
    assert not torch.allclose(after[0], after[1], atol=1e-7)
    assert not old & {id(weight) for weight in stage.trained.parameters()}


def test_shares_depend_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        pipeline = tiny_pipeline()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        widen(pipeline, (24, 16), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return pipeline.controlnet.controlnet_down_blocks[0].weight

    one, same, other = map(weights, (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "widths", "message"),
    [
        ({}, (8,), r"block_out_channels is \[8\] and the base_model has \[8, 16\]: give a width for each"),
        ({}, (4, 16), "give a width for each level, as large or larger"),
        ({}, (12, 16), r"\[12, 16\]: give a multiple of 8 for the first level"),
        ({}, (24, 18), "give multiples of 4, the groups of a norm"),
        ({}, (24, 32), "level 2 attends, or the middle on it does, so leave it at 16"),
        ({"down_block_types": ("DownBlock2D", "DownBlock2D")}, (24, 32), "level 2 attends, or the middle on it does"),
        ({"down_block_types": ("CrossAttnDownBlock2D",) * 2}, (24, 16), "level 1 attends"),
        ({"up_block_types": ("CrossAttnUpBlock2D",) * 2}, (24, 16), "level 1 attends"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, (24, 16), "the base_model has AttnDownBlock2D"),
        ({"time_embedding_dim": 64}, (24, 16), "the time_embedding_dim 64: leave it out"),
        ({"time_embedding_type": "fourier"}, (24, 16), "the time_embedding_type fourier: leave it out"),
        ({"norm_num_groups": 8}, (24, 16), "norms of different groups: leave it out"),
        ({}, (16, 16), "levels 1 and 2 would have one width and lose the layer"),
        (
            {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
            (24, 16),
            "the base_model has AttnUpBlock2D: leave it out",
        ),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            (24, 16),
            "the resnet_time_scale_shift scale_shift: leave it out",
        ),
        ({"freq_shift": 1}, (24, 16), "the freq_shift 1: leave it out"),
        ({"layers_per_block": (1, 2)}, (24, 16), r"block by block \(.1, 2.\): leave it out"),
    ],
)
def test_what_cannot_be_widened_so_is_refused(changes, widths, message):
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(**changes)
    with pytest.raises(ConfigError, match=message):
        widen(pipeline, widths, seed=0)


def test_a_run_widens_its_base_and_leaves_it_as_it_was(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "base")
    config = tiny_config(
        tmp_path / "run",
        base_model=str(tmp_path / "base"),
        model=ModelSize(),
        layers_per_block=2,
        block_out_channels=(24, 16),
        stages={"controlnet": {}, "joint": {}},
    )
    finished = TrainingRun(config).run()
    for folder, widths in ((tmp_path / "base", TINY.unet_channels), (finished, (24, 16))):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        controlnet = ControlNetModel.from_pretrained(folder, subfolder="controlnet")
        assert tuple(unet.config.block_out_channels) == tuple(controlnet.config.block_out_channels) == widths
        assert unet.config.layers_per_block == (2 if widths[0] == 24 else 1)
    assert TrainingRun(config).run() == finished
