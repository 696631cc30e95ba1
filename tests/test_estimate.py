"""What a run takes, counted without a step: against numbers worked out by hand, and against real steps."""

from importlib.util import find_spec

import pytest
import torch
from test_savings import precision
from tiny import TINY, pair_arrays, tiny_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backshan_diffusers import MINI
from backshan_diffusers.training.batches import StepSampler
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.estimate import describe, rehearse, step_flops
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import build_pipeline
from backshan_diffusers.training.stage_module import StageModule


class TwoLayers(StageModule):
    """A convolution that learns and a linear layer that may not: few enough operations to count by hand."""

    def __init__(self, head_learns: bool):
        body, head = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Linear(5, 7, bias=False)
        super().__init__(
            {"body": body, **({"head": head} if head_learns else {})}, {} if head_learns else {"head": head}
        )

    def forward(self, batch):
        features = self.component("body")(batch["pixels"]).movedim(1, -1)
        return {"loss": self.component("head")(features).square().mean()}


@pytest.mark.parametrize("head_learns", [True, False])
def test_operations_of_a_step_are_those_counted_by_hand(tmp_path, head_learns):
    """A step of 2 pictures of 4 x 4 px: 32 places."""
    places, convolution, linear = 2 * 4 * 4, 2 * (3 * 3 * 3) * 5, 2 * 5 * 7
    forward = places * (convolution + linear)
    # Backward: the gradient of the kernel (that of the pictures is not asked for), of the features, of the matrix.
    backward = places * (convolution + linear + (linear if head_learns else 0))
    module = TwoLayers(head_learns)
    for parts in (1, 3):
        settings = tiny_config(tmp_path, gradient_accumulation_steps=parts)
        counted = step_flops(module, {"pixels": torch.rand(2, 3, 4, 4)}, settings)
        assert counted == parts * (forward + backward)


@pytest.mark.parametrize(
    ("preset", "conditioning"),
    [("mse", "rgb"), ("paper", "rgb"), ("dispersive", "rgb"), ("backshan", "rgb"), ("backshan", "latents")],
)
@sdpa_kernel(SDPBackend.MATH)
def test_a_rehearsed_step_costs_what_the_real_one_does(tmp_path, preset, conditioning):
    (tmp_path / "cache").mkdir()
    settings = tiny_config(tmp_path, objective={"preset": preset}, conditioning=conditioning, crop_sizes=(32,))
    needs = {stage.name: stage for stage in rehearse(settings).stages}
    for name in ("vae", "prior", "controlnet", "joint"):
        pipeline = build_pipeline(TINY, 0, conditioning=conditioning)
        module, make_batch = TrainingRun(settings).build_stage(name, pipeline, pair_arrays())
        sampler = StepSampler(0, name)
        assert needs[name].step_flops == step_flops(module, make_batch(0, sampler), settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a run takes in which nothing of pictures is asked for."""
    return rehearse(tiny_config(tmp_path_factory.mktemp("plain"), crop_sizes=(32,)))


@pytest.mark.parametrize(
    "changes",
    [
        {"person_weight": 3.0, "head_weight": 8.0},
        {"hard_negatives": "attributes", "hard_group_size": 2},
        {"hard_negatives": "look", "hard_group_size": 2},
        {"mask_face": "blur"},
        {"captions": ("glasses=true: glasses",)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_concerns_pictures_alone_costs_nothing(tmp_path, plain, changes):
    assert rehearse(tiny_config(tmp_path, crop_sizes=(32,), **changes)) == plain


def test_a_second_pass_for_the_comparison_costs_a_pass_of_controlnet(tmp_path):
    def cost(cached: bool) -> int:
        values = {"objective": {"preset": "backshan"}, "cached_contrast": cached, "crop_sizes": (32,)}
        stages = {"vae": {}, "prior": {}, "controlnet": {}}
        return rehearse(tiny_config(tmp_path, stages=stages, **values)).stages[2].step_flops

    assert 1.1 * cost(False) < cost(True) < 1.5 * cost(False)


def test_an_adversary_costs_decoded_fronts_and_is_counted_among_what_learns(tmp_path):
    stages = {"vae": {}, "prior": {}, "joint": {}}
    plain, judged = (
        rehearse(
            tiny_config(tmp_path, objective={"preset": "mse", "adversarial_weight": weight}, stages=stages)
        ).stages[2]
        for weight in (0.0, 0.5)
    )
    assert judged.trained == plain.trained | {"discriminator": judged.trained["discriminator"]}
    assert judged.gradient_bytes == plain.gradient_bytes + 4 * judged.trained["discriminator"]
    assert judged.weight_bytes == plain.weight_bytes and judged.step_flops > 2 * plain.step_flops


def test_crops_of_several_sizes_cost_their_mean(tmp_path):
    def cost(pairs: int, *crops: int) -> int:
        settings = tiny_config(tmp_path, crop_sizes=crops, batch_size=pairs, stages={"vae": {}})
        return rehearse(settings).stages[0].step_flops

    small, large = cost(2, 32), cost(1, 64)  # of larger crops there are fewer, but at least one pair's
    assert large == 2 * small
    assert cost(2, 32, 64, 64) == (small + 2 * large) // 3


def test_weights_and_bytes_of_each_stage_are_those_of_its_models(tmp_path):
    needs = rehearse(
        tiny_config(
            tmp_path,
            stages={name: {} for name in ("vae", "prior", "controlnet")} | {"joint": {"unlock_unet": "decoder"}},
        )
    )
    models = {name: part for name, part in build_pipeline(TINY, 0).components.items() if isinstance(part, nn.Module)}
    sizes = {name: sum(tensor.numel() for tensor in model.parameters()) for name, model in models.items()}
    unet = models["unet"]
    decoder = sum(
        tensor.numel() for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out) for tensor in part.parameters()
    )
    assert needs.weights == sizes and set(sizes) == {"vae", "unet", "controlnet", "text_encoder"}
    learns = [
        {"vae": sizes["vae"]},
        {"unet": sizes["unet"]},
        {"controlnet": sizes["controlnet"]},
        {"controlnet": sizes["controlnet"], "unet": decoder},
    ]
    assert 0 < decoder < sizes["unet"] and [stage.trained for stage in needs.stages] == learns
    for stage, trained in zip(needs.stages, learns, strict=True):
        assert stage.weight_bytes == 4 * (sum(sizes.values()) - sizes["text_encoder"])
        assert stage.gradient_bytes == 4 * sum(trained.values())
        assert stage.optimizer_bytes == 8 * sum(trained.values())
        assert stage.average_bytes == stage.gradient_bytes
        parts = (stage.weight_bytes, stage.gradient_bytes, stage.optimizer_bytes, stage.average_bytes)
        assert stage.total_bytes == sum(parts)


def test_the_options_that_save_are_counted(tmp_path, plain):
    options = {"gradient_checkpointing": True, "unet_lora_rank": 2}
    if rounds := find_spec("bitsandbytes") is not None:
        options |= {"optimizer": "adamw8bit", "channels_last": False}
    plain = plain.stages
    saving = rehearse(tiny_config(tmp_path, crop_sizes=(32,), **options))
    for stage, other in zip(plain[:-1], saving.stages, strict=False):
        assert 1.1 * stage.step_flops < other.step_flops < 1.5 * stage.step_flops  # at most a second forward pass
        assert stage.weight_bytes == other.weight_bytes and stage.gradient_bytes == other.gradient_bytes
        assert 0.25 * stage.optimizer_bytes < other.optimizer_bytes <= stage.optimizer_bytes
    # small tensors stay in float32
    assert (saving.stages[1].optimizer_bytes < plain[1].optimizer_bytes) == rounds  # large enough tensors
    joint, adapted = plain[-1], saving.stages[-1]
    adapters = adapted.trained["unet_lora"]
    assert set(adapted.trained) == {"controlnet", "unet_lora"} and 0 < adapters < joint.trained["unet"] / 5
    assert adapted.gradient_bytes == 4 * (adapted.trained["controlnet"] + adapters) == adapted.average_bytes
    assert adapted.weight_bytes == joint.weight_bytes + 4 * adapters
    assert any(line.split()[:2] == ["unet_lora", "-"] for line in describe(saving).splitlines())


def test_in_mixed_precision_what_does_not_learn_weighs_half(tmp_path):
    with precision("bf16"):
        needs = rehearse(tiny_config(tmp_path, crop_sizes=(32,)))
    sizes = {name: count for name, count in needs.weights.items() if name != "text_encoder"}
    for stage, learns in zip(needs.stages, ({"vae"}, {"unet"}, {"controlnet"}, {"controlnet", "unet"}), strict=True):
        assert stage.weight_bytes == sum(count * (4 if name in learns else 2) for name, count in sizes.items())


def test_a_rehearsal_from_a_base_writes_nothing_and_reads_like_a_table(tmp_path):
    needs = rehearse(tiny_config(tmp_path / "run", model=ModelSize(), base_model=MINI))
    assert not (tmp_path / "run").exists()
    lines = describe(needs).splitlines()
    assert lines[0].split()[-3:] == ["all", "controlnet", "joint"]
    unet = next(line.split() for line in lines if line.startswith("unet"))
    assert unet == ["unet", "10.59", "M", "-", "10.59", "M"]
    assert "activations" in lines[-1]


def test_a_rehearsal_refuses_pairs_that_the_source_does_not_have(tmp_path):
    with pytest.raises(ConfigError, match="validation_pairs is 1000000000 and there are"):
        rehearse(tiny_config(tmp_path, validation_pairs=10**9))
