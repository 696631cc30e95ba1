"""Stages, batches, caches and the loop, with real models at tiny size."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, pair_arrays, prior_batch, step_pairs, tiny_config, tiny_pipeline, tiny_prior
from two_processes import launch

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.conditioning import CONDITIONINGS, control_latents
from backshan_diffusers.data import load_pairs
from backshan_diffusers.evaluation import colour_difference, ssim
from backshan_diffusers.objective import PRESETS, Objective
from backshan_diffusers.training import validation, whitening
from backshan_diffusers.training.base import open_base
from backshan_diffusers.training.batches import (
    StepPairs,
    StepSampler,
    blank_some,
    crop_batch,
    crop_shape,
    latent_batch,
    noise_batch,
    picture_control_batch,
    timestep_batch,
)
from backshan_diffusers.training.caching import cache_latents, cache_pairs, encode, to_pixels
from backshan_diffusers.training.checkpoints import checkpoint_steps
from backshan_diffusers.training.config import STAGES, ConfigError, ModelSize
from backshan_diffusers.training.order import LikenessOrder, RandomOrder, describe_by_attributes
from backshan_diffusers.training.run import Previews, TrainingRun
from backshan_diffusers.training.schedule import denoising_target, noise_schedule
from backshan_diffusers.training.scratch import build_controlnet, build_pipeline
from backshan_diffusers.training.stage_module import learning
from backshan_diffusers.training.stages import PriorStage
from backshan_diffusers.training.trainer import StageTrainer, learning_rate_factor
from backshan_diffusers.training.validation import generate, rebuild
from backshan_diffusers.training.whitening import whiten_latents

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "examples" / "configs" / "smoke.yaml"


# --- models from nothing ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_new_autoencoder_sees_colour_about_as_well_as_brightness():
    vae = build_pipeline(ModelSize(), 0).vae
    backdrop = torch.full((1, 3, 16, 16), 0.6)
    interior = vae.encoder.conv_in(backdrop)[..., 1:-1, 1:-1]
    torch.testing.assert_close(interior, torch.zeros_like(interior), atol=1e-5, rtol=0)
    directions = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]])
    seen = []
    for direction in directions / directions.norm(dim=1, keepdim=True):
        seen.append(vae.encoder.conv_in(backdrop + direction[:, None, None])[..., 1:-1, 1:-1].norm().item())
    assert 2 < seen[1] / seen[0] < 8 and 2 < seen[2] / seen[0] < 8  # a plain convolution: 1
    drawn = vae.decoder.conv_out(torch.zeros(1, 16, 8, 8))
    torch.testing.assert_close(drawn, torch.full_like(drawn, 0.6))


@torch.no_grad()
def test_a_new_model_passes_signals_on_and_adds_nothing():
    pipeline = build_pipeline(ModelSize(), 0)
    posterior = pipeline.vae.encode(torch.rand(2, 3, 64, 64)).latent_dist
    assert posterior.std.min() > 0.03 and posterior.std.max() < 0.08  # exp(-6 / 2) = 0.05
    for model in (pipeline.vae, pipeline.unet):
        blocks = [module for module in model.modules() if isinstance(module, ResnetBlock2D)]
        assert blocks and all(not block.conv2.weight.any() for block in blocks)
    kernels = pipeline.vae.encoder.down_blocks[0].downsamplers[0].conv.weight.flatten(1)
    torch.testing.assert_close(kernels @ kernels.T, torch.eye(len(kernels)), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_new_controlnet_is_silent_but_hears_pictures(conditioning):
    controlnet = build_pipeline(ModelSize(), 0, conditioning=conditioning).controlnet
    picture = torch.full((1, controlnet.config.conditioning_channels, 32, 32), 0.8)
    embedding = controlnet.controlnet_cond_embedding
    heard, first = [], []
    for direction in torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]):
        changed = picture.clone()
        changed[:, -3:] += 0.1 * direction[:, None, None] / direction.norm()
        heard.append(float((embedding(changed) - embedding(picture)).square().mean().sqrt()) / 0.1)
        first.append(float((embedding.conv_in(changed) - embedding.conv_in(picture)).norm()))
    scale = 1 if conditioning == "latents" else 0.3  # their standard deviation, about
    assert min(heard) * scale > 0.03, heard  # 0 with the usual last convolution
    if "rgb" in conditioning:
        assert min(first[1:]) > 2 * first[0]  # colours differ less than brightness does
        grey = torch.zeros_like(picture)
        grey[:, -3:] = 0.8
        middle = controlnet.controlnet_cond_embedding.conv_in(grey)[..., 1:-1, 1:-1]
        torch.testing.assert_close(middle, torch.zeros_like(middle), atol=1e-5, rtol=0)
        light = controlnet.controlnet_cond_embedding.conv_in(grey + grey / 8)[..., 8, 8].norm()
        assert 0.1 < light < 0.6  # 0.1 brighter in each colour
    if conditioning == "latents":
        usual = control_latents(torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(0)), 32)
        passed = embedding.conv_in(usual)
        assert abs(float(passed.mean())) < 0.1 and 1 < float(passed.std()) < 2  # latents as they are trained on
    noised, text = torch.randn(1, 8, 8, 8), torch.zeros(1, 7, 64)
    residuals = controlnet(noised, torch.tensor([10]), text, picture)
    assert not BackshanControlNetModel.control_features(residuals).any()


def test_a_new_scheduler_ends_in_pure_noise():
    scheduler = build_pipeline(TINY, 0).scheduler
    assert scheduler.alphas_cumprod[-1] < 1e-6 and scheduler.alphas_cumprod[0] > 0.999
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999 and scheduler.config.prediction_type == "v_prediction"


def test_the_tokenizer_of_a_new_model_tells_all_texts_apart():
    tokenizer = build_pipeline(TINY, 0).tokenizer
    texts = ["Front side of the person", "Front side of the persom", "前から見た人", "é", ""]
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == len(texts)
    assert tokenizer.decode(tokenizer(texts[2]).input_ids, skip_special_tokens=True) == texts[2]
    assert tokenizer.unk_token_id not in tokenizer(texts[2]).input_ids[1:-1]


def test_building_leaves_the_callers_random_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_pipeline(TINY, 0).unet.conv_in.weight
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(build_pipeline(TINY, 0).unet.conv_in.weight, first)
    assert not torch.equal(build_pipeline(TINY, 1).unet.conv_in.weight, first)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_epoch_shows_every_item_once_in_a_new_order():
    sampler = StepSampler(seed=1, stage="joint")
    epochs = [
        np.concatenate([sampler.indices(step, 3, RandomOrder(12)) for step in range(4 * e, 4 * e + 4)])
        for e in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_processes_share_a_step_without_overlap():
    alone = StepSampler(1, "joint").indices(2, 4, RandomOrder(16))
    shared = [StepSampler(1, "joint", process, 2).indices(2, 2, RandomOrder(16)) for process in range(2)]
    assert np.concatenate(shared).tolist() == alone.tolist()


def test_random_numbers_depend_on_seed_stage_step_process_and_purpose():
    variants = [
        StepSampler(0, "joint"),
        StepSampler(1, "joint"),
        StepSampler(0, "prior"),
        StepSampler(0, "joint", 1, 2),
    ]
    values = [torch.rand(1, generator=sampler.generator(3, "noise")).item() for sampler in variants]
    values += [torch.rand(1, generator=variants[0].generator(*args)).item() for args in ((4, "noise"), (3, "crop"))]
    assert len(set(values)) == len(values)
    assert values[0] == torch.rand(1, generator=variants[0].generator(3, "noise")).item()


def test_shared_random_numbers_are_the_same_on_every_process():
    values = [
        torch.rand(1, generator=StepSampler(seed, "joint", process, 2).shared_generator(step, "t")).item()
        for seed, process, step in ((0, 0, 3), (0, 1, 3), (0, 0, 4), (1, 0, 3))
    ]
    assert values[0] == values[1] and len(set(values)) == 3


def test_timesteps_cover_the_schedule_evenly_in_no_order():
    timesteps = timestep_batch(10, 1000, 1.0, torch.Generator().manual_seed(1)).tolist()
    assert sorted(t // 100 for t in timesteps) == list(range(10))
    gaps = {round((after - before) % 1000 / 100) for before, after in pairwise(timesteps)}
    assert len(gaps) > 2  # a row that begins anywhere and wraps around has one
    assert sorted(timestep_batch(100, 100, 1.0, torch.Generator().manual_seed(1)).tolist()) == list(range(100))
    several = [timestep_batch(1, 1000, 1.0, torch.Generator().manual_seed(seed)).item() for seed in range(50)]
    assert min(several) < 200 and max(several) > 800


def test_shifted_timesteps_are_those_of_the_formula():
    plain, shifted = (timestep_batch(40, 1000, shift, torch.Generator().manual_seed(1)) for shift in (1.0, 3.0))
    shares = (plain + 0.5) / 1000
    torch.testing.assert_close(shifted.float(), 3000 * shares / (1 + 2 * shares), atol=2.5, rtol=0)
    assert (shifted >= 750).sum() == 20 and shifted.max() < 1000  # odds of one become those of three


def test_the_last_position_has_the_last_timestep(monkeypatch):
    """Shifted, its share rounds to 1."""
    monkeypatch.setattr(torch, "rand", lambda size, generator: torch.tensor([1 - 2**-24]))
    assert timestep_batch(1, 1000, 6.0, torch.Generator()).tolist() == [999]


@pytest.mark.parametrize("kind", ["item", "batch"])
def test_a_stage_draws_the_timesteps_that_its_objective_asks_for(tmp_path, kind):
    (tmp_path / "cache").mkdir()
    objective = {"preset": "mse", "timesteps": kind, "timestep_shift": 1e6}
    run = TrainingRun(tiny_config(tmp_path, objective=objective))
    _, make_batch = run.build_stage("joint", tiny_pipeline(), pair_arrays())
    drawn = torch.cat([make_batch(number, StepSampler(0, "joint"))["timesteps"] for number in range(8)])
    assert drawn.min() >= 990


def test_fronts_get_noise_of_their_own_where_they_are_to_see_it():
    latents, objective = torch.zeros(3, 4, 8, 8), PRESETS["backshan"]
    batch = noise_batch(objective, latents, torch.Generator().manual_seed(0))
    assert batch["noise"].std() == pytest.approx(1, abs=0.1) and batch["front_noise"].std() == pytest.approx(
        1, abs=0.1
    )
    assert not torch.equal(batch["noise"], batch["front_noise"])
    for other in (PRESETS["mse"], PRESETS["paper"]):
        assert list(noise_batch(other, latents, torch.Generator())) == ["noise"]


def test_what_is_predicted_first_has_noise_of_its_own():
    """As where sampling begins: without an offset."""
    objective = Objective(adversarial_weight=1.0, coarse_weight=1.0, rollout_share=0.5, noise_offset=9.0)
    latents = torch.zeros(5, 4, 8, 8)
    batch = noise_batch(objective, latents, torch.Generator().manual_seed(0))
    assert {name: len(noise) for name, noise in batch.items()} == {"noise": 5, "first_noise": 2}
    assert not torch.equal(batch["noise"][:2], batch["first_noise"])
    assert batch["first_noise"].std() == pytest.approx(1, abs=0.2) and batch["noise"].std() > 3
    plain = noise_batch(Objective(noise_offset=9.0), latents, torch.Generator().manual_seed(0))
    assert torch.equal(batch["noise"], plain["noise"])


def test_offset_noise_is_constant_over_a_channel():
    latents = torch.zeros(64, 4, 8, 8)
    plain, offset = (
        noise_batch(Objective(noise_offset=share), latents, torch.Generator().manual_seed(0))["noise"]
        for share in (0.0, 0.5)
    )
    shift = (offset - plain).flatten(2)
    torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), rtol=0, atol=1e-5)
    assert shift[:, :, 0].std() == pytest.approx(0.5, abs=0.06)


def test_control_batch_flips_the_back_alone_and_blanks_only_backs():
    pairs, controlnet = pair_arrays(), tiny_pipeline().controlnet
    indices = np.array([5, 2])
    taken = step_pairs(pairs, indices)
    backs = picture_control_batch(taken.backs, controlnet, mirror=True)
    fronts = picture_control_batch(taken.fronts, controlnet, mirror=False)
    for item, index in enumerate(indices):
        back, front = (controls[item].permute(1, 2, 0).numpy() for controls in (backs, fronts))
        np.testing.assert_allclose(back, pairs.backs[index][:, ::-1] / 255, atol=1e-6)
        np.testing.assert_allclose(front, pairs.fronts[index] / 255, atol=1e-6)
    many = step_pairs(pairs, np.arange(8).repeat(50)).backs
    controls, white = picture_control_batch(many, controlnet, mirror=True), torch.ones(1, 3, 64, 64)
    assert blank_some(controls, white, torch.Generator(), 0.0)[1].all()
    blanked, shown = blank_some(controls, white, torch.Generator().manual_seed(0), 0.25)
    assert [bool((control == 1).all()) for control in blanked] == (~shown).tolist()
    assert 0.15 < float((~shown).float().mean()) < 0.35
    assert torch.equal(blanked[shown], controls[shown])
    assert (controls.amin(dim=(1, 2, 3)) < 0.2).all()  # the pictures themselves are left as they were


@pytest.mark.parametrize("mirror", [True, False])
def test_backs_are_mirrored_where_the_model_says_so_and_fronts_never(mirror, tmp_path):
    (tmp_path / "cache").mkdir()
    run, pairs = TrainingRun(tiny_config(tmp_path, condition_dropout=0.0)), pair_arrays()
    batch = run._control_stage(run.config, tiny_pipeline(mirror=mirror), pairs)[1](0, StepSampler(0, "controlnet"))
    backs, fronts = pairs.backs[batch["items"]], pairs.fronts[batch["items"]]
    for name, pictures in (("back_control", backs[:, :, ::-1] if mirror else backs), ("front_control", fronts)):
        np.testing.assert_allclose(batch[name].permute(0, 2, 3, 1).numpy(), pictures / 255, atol=1e-6)


def test_edges_are_found_with_the_recorded_thresholds():
    pairs = pair_arrays()
    edges = [
        picture_control_batch(pairs.fronts[:1], tiny_pipeline("canny", **thresholds).controlnet, mirror=False)
        for thresholds in ({}, {"canny_low_threshold": 900, "canny_high_threshold": 1500})
    ]
    assert edges[1].sum() < edges[0].sum()


def test_prompts_are_dropped_at_their_rate():
    prompts = torch.arange(4).view(4, 1, 1).float().expand(4, 3, 2)
    latents, places = torch.arange(400).view(400, 1, 1, 1).float(), torch.tensor([0, 2, 3, 2]).repeat(100)
    batch = latent_batch(latents, prompts, places, torch.Generator().manual_seed(0), 0.25)
    found = batch["prompts"][:, 0, 0].long()
    assert 0.15 < float((found == 1).float().mean()) < 0.35
    assert torch.equal(found[found != 1], places[found != 1])
    assert batch["latents"].flatten().tolist() == list(range(400))


def test_larger_crops_come_from_fewer_pairs_in_turn():
    assert [crop_shape(step, 8, (32, 64, 128)) for step in range(4)] == [(32, 8), (64, 2), (128, 1), (32, 8)]


def test_of_several_crops_the_one_with_most_detail_is_learned_from():
    pairs = pair_arrays(200)
    noise, pairs.backs[:], pairs.fronts[:] = pairs.backs[:, :32].copy(), 90, 90
    pairs.backs[:, :32] = noise
    crops = crop_batch(step_pairs(pairs, np.arange(200)), 16, {}, torch.Generator().manual_seed(0))["pixels"]
    top = (crops[:200].std(dim=(1, 2, 3)) > 0).float().mean()
    assert crops[200:].std() == 0
    assert top > 0.95  # one crop in two and a half holds nothing of the upper half, four of them nearly never


@pytest.mark.parametrize("axis", [0, 1])
def test_differences_to_the_right_and_downwards_are_detail(axis):
    pairs = pair_arrays(200)
    pairs.backs[:] = 90
    pairs.backs[:, :32] += (100 * (np.indices((32, 64, 3))[axis] % 2)).astype(np.uint8)
    crops = crop_batch(step_pairs(pairs, np.arange(200)), 16, {}, torch.Generator().manual_seed(0))["pixels"]
    assert (crops[:200].std(dim=(1, 2, 3)) > 0).float().mean() > 0.95


def test_crops_come_from_their_own_pictures():
    pairs = pair_arrays()
    crops = crop_batch(step_pairs(pairs, np.array([3, 6])), 16, {}, torch.Generator().manual_seed(0))["pixels"]
    assert crops.shape == (4, 3, 16, 16)
    for crop, source in zip(crops, (pairs.backs[3], pairs.backs[6], pairs.fronts[3], pairs.fronts[6]), strict=True):
        windows = to_pixels(source[None])[0].unfold(1, 16, 1).unfold(2, 16, 1)
        assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).any()


def test_crops_come_from_every_place_up_to_the_border():
    pairs = pair_arrays(40)
    crops = crop_batch(step_pairs(pairs, np.arange(40)), 63, {}, torch.Generator().manual_seed(0))["pixels"]
    pictures = to_pixels(np.concatenate([pairs.backs, pairs.fronts]))
    places = set()
    for crop, picture in zip(crops, pictures, strict=True):
        corners = [(top, left) for top in (0, 1) for left in (0, 1)]
        places |= {(y, x) for y, x in corners if torch.equal(crop, picture[:, y : y + 63, x : x + 63])}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}


# --- whitening -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_whitening_changes_latents_and_not_what_they_stand_for(monkeypatch):
    monkeypatch.setattr(whitening, "ENCODED_AT_ONCE", 3)
    vae, pictures = tiny_pipeline().vae, pair_arrays().fronts
    pixels = to_pixels(pictures)
    before = vae.encode(pixels).latent_dist
    rebuilt = vae.decode(before.mean).sample
    whiten_latents(vae, pictures)
    after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(vae.decode(after.mean).sample, rebuilt, rtol=1e-3, atol=1e-4)
    flat = after.mean.movedim(1, 0).flatten(1).numpy()
    np.testing.assert_allclose(flat.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(flat), np.eye(4), atol=1e-3)
    old = before.mean.movedim(1, 0).flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(old))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(flat, root @ (old - old.mean(1, keepdims=True)), atol=1e-2)
    variance = root**2 @ before.var.mean(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(after.var.amin((0, 2, 3)), variance, rtol=1e-3)
    np.testing.assert_allclose(after.var.amax((0, 2, 3)), variance, rtol=1e-3)
    assert vae.config.scaling_factor == 1


def test_an_empty_latent_direction_is_refused():
    vae = tiny_pipeline().vae
    vae.quant_conv.weight.data[1] = 2 * vae.quant_conv.weight.data[0]
    with pytest.raises(FloatingPointError, match="leaves a latent direction empty"):
        whiten_latents(vae, pair_arrays().fronts)


def test_a_latent_direction_of_noise_alone_is_refused():
    vae = tiny_pipeline().vae
    vae.quant_conv.bias.data[5] = 3  # of four means and four logarithms of variances
    with pytest.raises(FloatingPointError, match="leaves a latent direction empty: .* a smaller kl_weight"):
        whiten_latents(vae, pair_arrays().fronts)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, warmup_steps=10, max_steps=100) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[70] == 1.0
    assert factors[85] == pytest.approx(0.5) and factors[100] == 0.0


def train(folder: Path, **changes) -> Path:
    return TrainingRun(tiny_config(folder, **changes)).run()


def test_a_run_ends_with_a_pipeline_that_works(finished):
    for stage in ("vae", "prior", "controlnet", "joint"):
        assert checkpoint_steps(finished / stage) == [2, 4]
        assert Image.open(finished / stage / "sheets" / "0000004.png").size[0] > 3 * 64
        assert "seed: 0" in (finished / stage / "training_config.yaml").read_text()
    pipeline = BackToFrontPipeline.from_pretrained(finished / "joint" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(Image.new("RGB", (64, 64))).images[0].size == (64, 64)
    assert pipeline.controlnet.config.image_size == 64


def test_previews_are_shown_after_every_so_many_checkpoints(tmp_path):
    shown = []
    previews = Previews(2, lambda stage, step, write: shown.append((stage, step)))
    values = {"stages": {"vae": {}}, "max_steps": 9, "checkpoint_every": 2, "validate_every": 9}
    TrainingRun(tiny_config(tmp_path, **values), previews).run()
    assert shown == [("vae", 4), ("vae", 8)]


def test_a_stage_hands_its_weights_to_the_next(finished):
    name = "pipeline/vae/diffusion_pytorch_model.safetensors"
    vae, joint = (load_file(finished / stage / name) for stage in ("vae", "joint"))
    assert all(torch.equal(vae[name], joint[name]) for name in vae)
    prior = BackToFrontPipeline.from_pretrained(finished / "prior" / "pipeline")
    torch.testing.assert_close(prior.controlnet.conv_in.weight, prior.unet.conv_in.weight)
    assert prior.controlnet.controlnet_mid_block.weight.abs().max() == 0
    control = BackToFrontPipeline.from_pretrained(finished / "controlnet" / "pipeline")
    torch.testing.assert_close(control.unet.conv_in.weight, prior.unet.conv_in.weight)
    assert control.controlnet.controlnet_mid_block.weight.abs().max() > 0


def test_latents_of_the_trained_autoencoder_are_white(finished):
    pipeline = BackToFrontPipeline.from_pretrained(finished / "vae" / "pipeline")
    pairs = cache_pairs(load_pairs("wardrobe", split="train", size=64, count=8), finished / "cache", 1)
    latents = cache_latents(pairs, pipeline.vae, finished / "cache", Accelerator()).movedim(1, 0).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(latents), torch.eye(4), atol=1e-3, rtol=0)


def test_prompts_of_every_stage_are_encoded_once(finished):
    (path,) = (finished / "cache").glob("*-prompts-*")
    last = BackToFrontPipeline.from_pretrained(finished / "joint" / "pipeline")
    expected = last.encode_prompt([last.controlnet.config.default_prompt, ""], "cpu", 1, False)[0]
    torch.testing.assert_close(load_file(path)["prompts"], expected)


def test_the_text_encoder_is_away_while_a_stage_trains_and_saved_with_it(tmp_path):
    base = tiny_pipeline(default_prompt="seen from ahead", default_guidance_scale=3.0)
    base.save_pretrained(tmp_path / "base")
    changes = {"model": ModelSize(), "base_model": str(tmp_path / "base"), "stages": {"controlnet": {}}}
    run, seen = TrainingRun(tiny_config(tmp_path / "run", max_steps=1, checkpoint_every=1, **changes)), []
    validate = run._validate

    def look(name, step, pipeline, held_out, masks, prompts):
        expected = base.encode_prompt(["seen from ahead", ""], "cpu", 1, False)[0]
        torch.testing.assert_close(prompts, expected)
        seen.append(pipeline.text_encoder)
        validate(name, step, pipeline, held_out, masks, prompts)

    run._validate = look
    finished = BackToFrontPipeline.from_pretrained(run.run())
    assert seen == [None]
    torch.testing.assert_close(finished.text_encoder.state_dict(), base.text_encoder.state_dict())
    # What was validated is what the saved pipeline draws, guided by its own empty prompt.
    pairs = cache_pairs(load_pairs("wardrobe", split="validation", size=64, count=2), tmp_path / "run" / "cache", 1)
    finished.set_progress_bar_config(disable=True)
    fronts = [
        finished(Image.fromarray(back), generator=torch.Generator().manual_seed(index)).images[0]
        for index, back in enumerate(pairs.backs)
    ]
    (row,) = csv.DictReader((tmp_path / "run" / "controlnet" / "validation.csv").read_text().splitlines())
    assert float(row["l1"]) == pytest.approx(np.abs(np.stack(fronts) / 255 - pairs.fronts / 255).mean(), abs=2e-4)


def test_two_runs_share_a_cache(tmp_path):
    few = {"max_steps": 1, "checkpoint_every": 1, "cache_dir": str(tmp_path / "shared")}
    train(tmp_path / "first", stages={"vae": {}, "prior": {}}, **few)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir() if path.suffix != ".lock"}
    assert {path.suffix for path in before} == {".npy", ".jsonl", ".txt", ".safetensors"}
    train(tmp_path / "second", stages={"vae": {}, "prior": {}}, **few)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir() if path.suffix != ".lock"}
    assert after == before  # the same autoencoder too: it was trained with the same seed
    assert not (tmp_path / "first" / "cache").exists() and not (tmp_path / "second" / "cache").exists()
    train(tmp_path / "second", stages={"vae": {}, "prior": {}}, **few | {"cache_dir": None})  # it may move


def test_the_first_weights_are_drawn_from_the_seed(finished, tmp_path):
    untouched = build_pipeline(TINY, 0).unet.conv_in.weight
    assert torch.equal(
        BackToFrontPipeline.from_pretrained(finished / "vae" / "pipeline").unet.conv_in.weight, untouched
    )


def test_a_run_from_nothing_records_what_its_config_says(tmp_path):
    says = {"conditioning": "canny", "mirror": False, "prompt": "seen from ahead", "seed": 3}
    folder = train(tmp_path, max_steps=1, checkpoint_every=1, stages={"vae": {}, "prior": {}}, **says)
    controlnet = BackToFrontPipeline.from_pretrained(folder).controlnet
    recorded = controlnet.config
    assert (recorded.conditioning, recorded.mirror) == ("canny", False)
    assert recorded.default_prompt == "seen from ahead" and recorded.image_size == 64
    assert (recorded.default_guidance_scale, recorded.default_num_inference_steps) == (1.0, 20)
    unet = BackToFrontPipeline.from_pretrained(folder).unet
    read = {"conditioning": "canny", "mirror": False}
    same, other = (build_controlnet(unet, TINY, seed, **read).controlnet_cond_embedding for seed in (3, 4))
    assert torch.equal(controlnet.controlnet_cond_embedding.conv_out.weight, same.conv_out.weight)
    assert not torch.equal(controlnet.controlnet_cond_embedding.conv_out.weight, other.conv_out.weight)
    first = BackToFrontPipeline.from_pretrained(tmp_path / "vae" / "pipeline").unet.conv_in.weight
    assert torch.equal(first, build_pipeline(TINY, 3).unet.conv_in.weight)


def test_pictures_are_made_a_few_at_a_time_each_as_if_alone(monkeypatch):
    monkeypatch.setattr(validation, "AT_ONCE", 3)
    pipeline, pictures = tiny_pipeline(), pair_arrays().backs[:4]
    prompts = pipeline.encode_prompt(["Front side of the person", ""], "cpu", 1, False)[0]
    fronts = generate(pipeline, pictures, 5, prompts)
    for index, front in enumerate(fronts):
        generator = torch.Generator().manual_seed(5 + index)
        alone = pipeline(Image.fromarray(pictures[index]), generator=generator).images[0]
        np.testing.assert_allclose(np.asarray(front, int), np.asarray(alone, int), atol=1)
    again = [rebuild(pipeline.vae, pictures[index : index + 1])[0] for index in range(4)]
    for one, other in zip(rebuild(pipeline.vae, pictures), again, strict=True):
        np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)


@torch.no_grad()
def test_what_an_autoencoder_gives_back_is_rounded_and_ends_at_black_and_white():
    vae, pictures = tiny_pipeline().vae, pair_arrays().fronts
    vae.decoder.conv_out.weight *= 20
    values = vae.decode(vae.encode(to_pixels(pictures)).latent_dist.mean).sample.permute(0, 2, 3, 1).numpy()
    assert values.min() < -1.1 and values.max() > 1.1
    np.testing.assert_array_equal(np.stack(rebuild(vae, pictures)), np.rint((values.clip(-1, 1) + 1) * 127.5))


def test_held_out_errors_are_those_of_the_saved_weights(finished):
    rows = load_pairs("wardrobe", split="validation", size=64, count=2)
    held_out = cache_pairs(rows, finished / "cache", 1)
    for stage in STAGES:
        (row,) = csv.DictReader((finished / stage / "validation.csv").read_text().splitlines())
        pipeline = BackToFrontPipeline.from_pretrained(finished / stage / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        if stage == "vae":
            results = rebuild(pipeline.vae, held_out.fronts)
        else:
            results = [
                pipeline(Image.fromarray(b), generator=torch.Generator().manual_seed(i)).images[0]
                for i, b in enumerate(held_out.backs)
            ]
        expected = np.mean(np.abs(np.stack(results) / 255 - held_out.fronts[: len(results)] / 255))
        assert row["step"] == "4" and float(row["l1"]) == pytest.approx(expected, abs=2e-4), stage
        people = [
            (np.asarray(each), np.asarray(pair["front"]), np.asarray(pair["front_person"]))
            for each, pair in zip(results, rows)
        ]
        for name, metric in (("person_ssim", ssim), ("person_colour_difference", colour_difference)):
            expected = np.mean([metric(*person) for person in people])
            assert float(row[name]) == pytest.approx(expected, rel=0.02), (stage, name)


def test_a_step_is_adamw_on_clipped_gradients_at_the_scheduled_rate(tmp_path):
    rates = {"learning_rate": 0.01, "warmup_steps": 4, "adam_beta1": 0.6, "weight_decay": 0.3, "ema_decay": 0.5}
    settings = tiny_config(tmp_path, max_steps=3, max_grad_norm=0.1, **rates)
    stage, make_batch = tiny_prior()
    reference = copy.deepcopy(stage.trained["unet"])
    average = copy.deepcopy(reference)
    optimizer = torch.optim.AdamW(reference.parameters(), 0.01, betas=(0.6, 0.99), weight_decay=0.3)
    trainer = StageTrainer(Accelerator(), stage, make_batch, settings, "prior", tmp_path)
    trainer.train(lambda step: None)
    norms = []
    for step in range(3):
        batch = make_batch(step, None)
        noised = stage.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        prediction = reference(noised, batch["timesteps"], batch["prompts"]).sample
        loss = ((prediction - denoising_target(stage.scheduler, batch)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)))
        optimizer.param_groups[0]["lr"] = 0.01 * learning_rate_factor(step, 4, 3)
        optimizer.step()
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        for slow, fast in zip(average.parameters(), reference.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - decay)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["grad_norm_unet"] for line in lines] == pytest.approx(norms, rel=1e-3)
    assert min(norms) > 0.1
    # Adam divides by the gradient's size, so that rounding shows where a gradient is nearly zero.
    close = {"rtol": 1e-3, "atol": 3e-4}
    torch.testing.assert_close(stage.trained["unet"].state_dict(), reference.state_dict(), **close)
    with trainer.averaged_weights():
        torch.testing.assert_close(stage.trained["unet"].state_dict(), average.state_dict(), **close)


def test_a_line_of_the_log_is_the_mean_since_the_last_one(tmp_path):
    lines = {}
    for log_every in (1, 2):
        folder = tmp_path / str(log_every)
        folder.mkdir()
        torch.manual_seed(0)
        stage, make_batch = tiny_prior()
        StageTrainer(
            Accelerator(), stage, make_batch, tiny_config(folder, log_every=log_every), "prior", folder
        ).train(lambda step: None)
        lines[log_every] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    each = [line["loss"] for line in lines[1]]
    assert [line["loss"] for line in lines[2]] == pytest.approx([np.mean(each[:2]), np.mean(each[2:])], abs=2e-6)
    assert [line["step"] for line in lines[2]] == [2, 4]


def test_the_terms_of_a_step_are_means_over_its_micro_batches(tmp_path):
    stage, make_batch = tiny_prior()
    batch = make_batch(0, None)

    def make_louder(number, sampler):
        return {**batch, "latents": batch["latents"] * (1 + number)}

    settings = tiny_config(tmp_path, gradient_accumulation_steps=2)
    trainer = StageTrainer(Accelerator(), stage, make_louder, settings, "prior", tmp_path)
    with torch.no_grad():
        each = [float(stage(make_louder(number, None))["loss"]) for number in (0, 1)]
    terms, items = trainer.advance()
    assert items == 4 and each[1] > 1.1 * each[0]
    assert float(terms["loss"]) == pytest.approx(np.mean(each), rel=1e-5)


def test_validation_between_two_lines_of_the_log_loses_no_step(tmp_path):
    stage, make_batch = tiny_prior()
    every = {"log_every": 4, "checkpoint_every": 4, "validate_every": 3}
    trainer = StageTrainer(Accelerator(), stage, make_batch, tiny_config(tmp_path, **every), "prior", tmp_path)
    single, module = [], trainer.module.forward

    def spy(*inputs):
        terms = module(*inputs)
        single.append(float(terms["loss"]))
        return terms

    trainer.module.forward = spy
    trainer.train(lambda step: None)
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(single) == 4 and line["loss"] == pytest.approx(np.mean(single), abs=2e-6)


def test_the_last_step_is_logged_validated_and_saved_whatever_its_number(tmp_path):
    every = {"max_steps": 3, "log_every": 2, "validate_every": 2, "checkpoint_every": 2}
    validated, saved = [], []
    trainer = StageTrainer(Accelerator(), *tiny_prior(), tiny_config(tmp_path, **every), "prior", tmp_path)
    trainer.train(validated.append, saved.append)
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == validated == saved == checkpoint_steps(tmp_path) == [2, 3]


def test_averaged_weights_are_what_is_saved_and_what_is_restored(tmp_path):
    pipeline = tiny_pipeline()
    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    settings = tiny_config(tmp_path, learning_rate=0.05)
    latents = torch.randn(8, 4, 8, 8)

    def make_batch(step, sampler):
        return prior_batch(latents[:2])

    trainer = StageTrainer(Accelerator(), stage, make_batch, settings, "prior", tmp_path)
    start = pipeline.unet.conv_in.weight.detach().clone()
    seen = []

    def look(step):
        assert not pipeline.unet.training
        seen.append(pipeline.unet.conv_in.weight.detach().clone())

    trainer.train(look)
    raw = pipeline.unet.conv_in.weight.detach()
    assert len(seen) == 1 and not torch.equal(seen[0], raw)
    assert (seen[0] - start).norm() < (raw - start).norm()
    assert pipeline.unet.training


# --- a trained base --------------------------------------------------------------------------------------------------


def test_a_base_of_ours_keeps_what_it_records(tmp_path):
    saved = tiny_pipeline(mirror=False, default_prompt="seen from ahead", default_guidance_scale=3.0)
    saved.controlnet.register_to_config(image_size=128)
    saved.save_pretrained(tmp_path)
    opened = open_base(str(tmp_path), 0).controlnet
    for name in ("conditioning", "mirror", "image_size", "default_prompt", "default_guidance_scale"):
        assert opened.config[name] == saved.controlnet.config[name]
    assert torch.equal(opened.conv_in.weight, saved.controlnet.conv_in.weight)
    told = open_base(str(tmp_path), 0, mirror=True, conditioning="canny+rgb").controlnet
    assert told.config.mirror and told.config.conditioning == "canny+rgb"
    assert told.config.default_prompt == "seen from ahead"


def test_a_base_with_a_stock_controlnet_reads_edges_unless_told(tmp_path):
    pipeline = tiny_pipeline()
    stock = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    pipeline.register_modules(controlnet=stock)
    pipeline.save_pretrained(tmp_path)
    opened = open_base(str(tmp_path), 0).controlnet
    assert isinstance(opened, BackshanControlNetModel)
    assert (opened.config.conditioning, opened.config.image_size) == ("canny", 64)
    assert torch.equal(opened.conv_in.weight, stock.conv_in.weight)
    for told in ("canny+rgb", "latents"):
        assert open_base(str(tmp_path), 0, conditioning=told).controlnet.config.conditioning == told


def test_a_base_without_controlnet_gets_one(tmp_path):
    parts = tiny_pipeline(seed=3).components
    del parts["controlnet"], parts["image_encoder"]
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    opened = open_base(str(tmp_path), 0, mirror=False)
    assert isinstance(opened, BackToFrontPipeline)
    assert torch.equal(opened.controlnet.conv_in.weight, parts["unet"].conv_in.weight)
    assert (opened.controlnet.config.conditioning, opened.controlnet.config.mirror) == ("rgb", False)
    assert opened.controlnet.config.image_size == 64
    embeddings = [open_base(str(tmp_path), seed).controlnet.controlnet_cond_embedding for seed in (0, 0, 1)]
    first, again, other = (embedding.conv_in.weight for embedding in embeddings)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_base_without_controlnet_needs_latents_of_an_eighth(tmp_path):
    parts = build_pipeline(replace(TINY, vae_channels=(8, 8, 8), condition_channels=(4, 4, 8)), 0).components
    del parts["controlnet"], parts["image_encoder"]
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="give a pipeline that has a ControlNet"):
        open_base(str(tmp_path), 0)


def test_noise_is_added_as_the_base_was_trained_whatever_samples_it():
    ours = tiny_pipeline().scheduler
    ancestral = EulerAncestralDiscreteScheduler.from_config(ours.config)
    latents, noise, steps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        noise_schedule(ancestral).add_noise(latents, noise, steps), ours.add_noise(latents, noise, steps)
    )
    ours.register_to_config(prediction_type="sample")
    with pytest.raises(ConfigError, match="predicts sample"):
        noise_schedule(ours)


def test_a_run_from_a_base_may_train_its_decoder_on_and_leaves_its_latents(tmp_path, tiny_folder):
    settings = tiny_config(tmp_path, model=ModelSize(), base_model=str(tiny_folder), stages={"vae": {}})
    folders = tiny_folder, TrainingRun(settings).run()
    before, after = (BackToFrontPipeline.from_pretrained(folder).vae for folder in folders)
    moved = {
        name.partition(".")[0]
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {"decoder", "post_quant_conv"}
    assert after.config.scaling_factor == before.config.scaling_factor
    with pytest.raises(ConfigError, match="crop_sizes is .*: give multiples of 8 up to image_size, 64"):
        TrainingRun(replace(settings, output_dir=str(tmp_path / "other"), crop_sizes=(128,))).run()


def test_a_run_from_a_base_may_train_its_whole_autoencoder_on_and_whitens_it_anew(tmp_path, tiny_folder):
    stages = {"vae": {"latents_stay": False}, "joint": {}}
    settings = tiny_config(tmp_path, model=ModelSize(), base_model=str(tiny_folder), stages=stages)
    finished = TrainingRun(settings).run()
    base, after = (BackToFrontPipeline.from_pretrained(folder) for folder in (tiny_folder, finished))
    assert not torch.equal(base.vae.encoder.conv_in.weight, after.vae.encoder.conv_in.weight)
    assert not torch.equal(base.unet.conv_in.weight, after.unet.conv_in.weight)
    fronts = np.stack([np.asarray(row["front"]) for row in load_pairs("wardrobe", split="train", size=64, count=8)])
    with torch.no_grad():
        latents = after.vae.encode(to_pixels(fronts)).latent_dist.mean.movedim(1, 0).flatten(1)
    torch.testing.assert_close(torch.cov(latents), torch.eye(4), atol=1e-3, rtol=0)
    assert after.vae.config.scaling_factor == 1


def test_a_run_from_a_base_reads_pictures_as_the_base_does(tmp_path):
    """Unmirrored, edges, another prompt and another size than the config's defaults."""
    base = tiny_pipeline("canny", mirror=False, default_prompt="seen from ahead")
    base.save_pretrained(tmp_path / "base")
    run = TrainingRun(tiny_config(tmp_path / "run", model=ModelSize(), base_model=str(tmp_path / "base")))
    run.config = replace(run.config, stages={"controlnet": {"max_steps": 2}})
    finished = BackToFrontPipeline.from_pretrained(run.run())
    recorded = finished.controlnet.config
    assert (recorded.conditioning, recorded.mirror) == ("canny", False)
    assert (recorded.default_prompt, recorded.image_size) == ("seen from ahead", 64)
    backs = (tmp_path / "run" / "cache").glob("*-backs.npy")
    assert {np.load(path, mmap_mode="r").shape[1] for path in backs} == {64}
    trained = finished.controlnet.conv_in.weight
    assert not torch.equal(trained, base.controlnet.conv_in.weight)
    assert (trained - base.controlnet.conv_in.weight).abs().max() < 0.01
    assert torch.equal(finished.unet.conv_in.weight, base.unet.conv_in.weight)


def test_batches_hold_the_recorded_prompt_the_empty_one_and_the_groups(tmp_path):
    pipeline, pairs = tiny_pipeline(default_prompt="seen from ahead"), pair_arrays()
    (tmp_path / "cache").mkdir()
    run = TrainingRun(tiny_config(tmp_path))
    settings = replace(run.config, prompt_dropout=0.5, batch_size=8)
    stage, make_batch = run._control_stage(settings, pipeline, pairs)
    assert stage.objective == PRESETS["paper"] and set(stage.trained) == {"controlnet"}
    assert set(run._joint_stage(settings, pipeline, pairs)[0].trained) == {"controlnet", "unet"}
    batch = make_batch(0, StepSampler(0, "controlnet"))
    chosen = StepSampler(0, "controlnet").indices(0, 8, RandomOrder(8))
    assert batch["groups"].tolist() == pairs.groups[chosen].tolist()
    encoded = [pipeline.encode_prompt(text, "cpu", 1, False)[0][0] for text in ("seen from ahead", "")]
    kinds = [[torch.allclose(prompt, each, atol=1e-5) for each in encoded] for prompt in batch["prompts"]]
    assert {tuple(kind) for kind in kinds} == {(True, False), (False, True)}
    assert {"latents", "back_control", "front_control", "shown", "noise", "timesteps"} < set(batch)
    assert batch["contrastive_weight"] == 1 and len(set(batch["timesteps"].tolist())) == 8
    mse = replace(settings, objective={"preset": "mse"})
    plain = run._control_stage(mse, pipeline, pairs)[1](0, StepSampler(0, "controlnet"))
    assert "front_control" not in plain
    for share in (0.0, 1.0):
        dropped = replace(settings, condition_dropout=share, prompt_dropout=share)
        batch = run._control_stage(dropped, pipeline, pairs)[1](0, StepSampler(0, "controlnet"))
        assert batch["shown"].all() == (share == 0) and batch["shown"].any() == (share == 0)
        assert bool((batch["back_control"] == 1).all()) == (share == 1)
        prior = run._prior_stage(dropped, pipeline, pairs)[1](0, StepSampler(0, "prior"))
        assert all(torch.allclose(prompt, encoded[int(share)], atol=1e-5) for prompt in prior["prompts"])


@pytest.mark.parametrize("stage", ["vae", "prior", "controlnet"])
def test_whatever_is_random_in_a_batch_has_numbers_of_its_own(tmp_path, stage):
    """Otherwise it would be, say, the blank backs that come with the empty prompt."""
    (tmp_path / "cache").mkdir()
    changes = {"flip": 0.5, "affine": (5.0, 0.05, 0.1), "colour_jitter": (0.1, 0.1, 0.1, 0.0)}
    run, asked = TrainingRun(tiny_config(tmp_path, **changes)), []

    class Watched(StepSampler):
        def generator(self, step: int, purpose: str) -> torch.Generator:
            asked.append(purpose)
            return super().generator(step, purpose)

    run.build_stage(stage, tiny_pipeline(), pair_arrays())[1](0, Watched(0, stage))
    assert len(set(asked)) == len(asked) >= 5


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("front_latents", ["independent", "own"])
@pytest.mark.parametrize(
    "augmentation",
    [{}, {"flip": 0.5}, {"flip": 0.5, "affine": (5.0, 0.05, 0.1), "colour_jitter": (0.1, 0.1, 0.1, 0.0)}],
)
def test_latents_that_enter_in_training_are_those_of_the_pipeline(tmp_path, mirror, front_latents, augmentation):
    """From the cache, in either orientation, and from the autoencoder where pictures are never the same twice."""
    (tmp_path / "cache").mkdir()
    objective = {"preset": "paper", "front_latents": front_latents}
    settings = tiny_config(tmp_path, objective=objective, batch_size=8, condition_dropout=0.0, **augmentation)
    run, pipeline, pairs = TrainingRun(settings), tiny_pipeline("latents", mirror=mirror), pair_arrays()
    sampler, seen = StepSampler(0, "controlnet"), []
    batch = run._control_stage(settings, pipeline, pairs)[1](0, sampler)
    taken = StepPairs(pairs, batch["items"].numpy(), settings.augmentation(), sampler, 0)
    if augmentation:
        assert len(set(taken.flipped.tolist())) == 2
    pipeline.controlnet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    for pictures, flipped in ((taken.backs, mirror), (taken.fronts, False)):
        pipeline([Image.fromarray(each) for each in pictures], mirror=flipped, num_inference_steps=1)
    backs, fronts = seen
    assert not torch.allclose(batch["back_control"], batch["back_control"].flip(-1), atol=0.01)
    torch.testing.assert_close(batch["back_control"], backs, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch["front_control"], fronts, rtol=0, atol=1e-5)
    if front_latents == "own":
        torch.testing.assert_close(control_latents(batch["back_latents"], 64), backs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("augmentation", [{}, {"colour_jitter": (0.0, 0.0, 0.0, 0.01)}])
def test_backs_with_latents_of_their_own_lie_on_the_fronts(tmp_path, mirror, augmentation):
    """From the cache, and from the autoencoder where pictures are never the same twice."""
    (tmp_path / "cache").mkdir()
    objective = {"preset": "paper", "front_latents": "own"}
    run = TrainingRun(tiny_config(tmp_path, objective=objective, batch_size=8, **augmentation))
    pipeline, pairs, sampler = tiny_pipeline(mirror=mirror), pair_arrays(), StepSampler(0, "controlnet")
    batch = run._control_stage(run.config, pipeline, pairs)[1](0, sampler)
    backs = StepPairs(pairs, batch["items"].numpy(), run.config.augmentation(), sampler, 0).backs
    as_they_are, flipped = encode(backs, pipeline.vae), encode(backs[:, :, ::-1], pipeline.vae)
    assert not torch.allclose(as_they_are, flipped, atol=1e-2)
    torch.testing.assert_close(batch["back_latents"], flipped if mirror else as_they_are)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("head", {"objective": {"preset": "backshan", "projection_width": 4}}),
        ("unet_lora", {"unet_lora_rank": 2}),
        ("discriminator", {"objective": {"preset": "mse", "adversarial_weight": 1.0}}),
    ],
)
def test_what_joins_a_stage_is_drawn_from_the_seed(tmp_path, part, changes):
    (tmp_path / "cache").mkdir()

    def drawn(seed: int, others: int) -> list[torch.Tensor]:
        torch.manual_seed(others)
        run = TrainingRun(tiny_config(tmp_path, seed=seed, **changes))
        stage, _ = run.build_stage("joint", tiny_pipeline(), pair_arrays())
        return [weight.detach() for weight in learning(dict(stage.named_trained())[part])]

    first, again, other = drawn(3, 0), drawn(3, 1), drawn(4, 0)
    assert all(torch.equal(*weights) for weights in zip(first, again, strict=True))
    assert not all(torch.equal(*weights) for weights in zip(first, other, strict=True))


def test_one_timestep_for_the_batch_is_shared_by_processes_and_micro_batches(tmp_path):
    (tmp_path / "cache").mkdir()
    run = TrainingRun(
        tiny_config(tmp_path, gradient_accumulation_steps=2, objective={"preset": "paper", "timesteps": "batch"})
    )
    _, make_batch = run._control_stage(run.config, tiny_pipeline(), pair_arrays())
    drawn = [
        make_batch(number, StepSampler(0, "controlnet", process, 2))["timesteps"].unique().tolist()
        for number, process in ((0, 0), (0, 1), (1, 0), (2, 0))
    ]
    assert len(drawn[0]) == 1 and drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_the_contrastive_weight_follows_the_steps(tmp_path):
    (tmp_path / "cache").mkdir()
    run = TrainingRun(
        tiny_config(
            tmp_path, gradient_accumulation_steps=2, objective={"preset": "paper", "contrastive_warmup_steps": 4}
        )
    )
    _, make_batch = run._control_stage(run.config, tiny_pipeline(), pair_arrays())
    sampler = StepSampler(0, "controlnet")
    assert [make_batch(number, sampler)["contrastive_weight"].item() for number in (0, 1, 2, 8)] == [0, 0, 0.25, 1]


def test_similar_outfits_come_together_where_negatives_are_to_be_hard(tmp_path):
    (tmp_path / "cache").mkdir()
    pairs, settings = pair_arrays(), tiny_config(tmp_path, hard_negatives="look", hard_group_size=2, batch_size=8)
    pairs.backs[:] = (np.arange(8) // 2 * 60)[:, None, None, None]
    _, make_batch = TrainingRun(settings)._control_stage(settings, tiny_pipeline(), pairs)
    items = make_batch(0, StepSampler(0, "controlnet"))["items"].reshape(4, 2)
    assert (items // 2 == items[:, :1] // 2).all()


def test_outfits_with_the_same_labels_come_together_where_negatives_are_to_be_hard(tmp_path):
    settings = tiny_config(tmp_path, hard_negatives="attributes", hard_group_size=2, train_pairs=32)
    run = TrainingRun(settings)
    rows, _ = run.pairs(64)
    pairs = run._cached(rows)
    order = run._order(settings, pairs)(0)
    expected = LikenessOrder(describe_by_attributes([row["attributes"] for row in rows]), 2)(0)
    assert order.tolist() == expected.tolist()


def test_pairs_among_which_no_similar_ones_can_be_sought_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="hard_group_size is 16 and train_pairs 8: give at most so many.$"):
        tiny_config(tmp_path, hard_negatives="look", hard_group_size=16, batch_size=16)
    plain = {"source": "folder", "source_path": str(tmp_path / "pairs"), "train_pairs": 40, "validation_pairs": 1}
    for split, count in (("train", 40), ("validation", 1)):
        (tmp_path / "pairs" / split).mkdir(parents=True)
        for number, view in product(range(count), ("back", "front")):
            picture = Image.new("RGB", (64, 64), (number * 6, len(view) * 30, len(split)))
            picture.save(tmp_path / "pairs" / split / f"{number}_{view}.png")
    (tmp_path / "pairs/train/7_back.png").write_bytes(b"broken")
    for kind, size, words in (
        (
            "attributes",
            2,
            "controlnet compares the attributes of pairs, but these have none: give hard_negatives look.",
        ),
        ("look", 40, "controlnet shows 40 similar outfits together, but only 39 pairs can be used: give a smaller"),
    ):
        settings = tiny_config(tmp_path / kind, **plain, hard_negatives=kind, hard_group_size=size, batch_size=40)
        with pytest.raises(ConfigError, match=words):
            TrainingRun(settings).run()
        assert not (tmp_path / kind / "vae").exists()


def test_the_weights_of_the_autoencoders_loss_are_those_of_the_config(tmp_path):
    settings = tiny_config(tmp_path, kl_weight=0.1, edge_weight=0.2, colour_weight=0.3)
    stage, _ = TrainingRun(settings)._vae_stage(settings, tiny_pipeline(), pair_arrays())
    assert (stage.kl_weight, stage.edge_weight) == (0.1, 0.2)
    torch.testing.assert_close(stage.colours.norm(dim=1), torch.tensor([1, 0.3, 0.3]))


def test_two_processes_train_one_model(tmp_path):
    path = tmp_path / "c.yaml"
    shared = SMOKE.read_text() + "\nstages: {vae: {}, prior: {}}\n"
    path.write_text(shared)
    script = ROOT / "examples" / "train_backshan.py"
    shortened = ["--max_steps", "2", "--train_pairs", "8", "--validation_pairs", "1", "--batch_size", "2"]
    printed = launch(script, "--config", path, "--output_dir", tmp_path / "run", *shortened, "--report_to", "none")
    assert printed.count("The finished pipeline is in") == 1
    lines = (tmp_path / "run" / "prior" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "processes: 2" in (tmp_path / "run" / "prior" / "training_config.yaml").read_text()
    BackToFrontPipeline.from_pretrained(tmp_path / "run" / "prior" / "pipeline")


def test_ctrl_c_ends_a_run_with_a_sentence(tmp_path):
    in_front = (  # what a shell begins in the background never hears of Ctrl-C
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", in_front, str(ROOT / "examples" / "train_backshan.py"), "--config", str(SMOKE)]
    command += ["--output_dir", str(tmp_path / "run"), "--max_steps", "100000", "--report_to", "none"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        while run.poll() is None and not (tmp_path / "run" / "vae" / "metrics.jsonl").exists():
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=100)
    finally:
        run.kill()
    assert run.returncode == 130
    assert stderr.endswith("interrupted: the same command goes on from the last checkpoint.\n")
    assert "Traceback" not in stderr


def test_the_script_trains_a_controlnet_that_reads_latents(tmp_path):
    """From nothing, and with every control tensor but the fronts' made of cached backs; the base of a second run."""
    command = [sys.executable, str(ROOT / "examples" / "train_backshan.py"), "--config", str(SMOKE)]
    command += ["--output_dir", str(tmp_path / "run"), "--conditioning", "latents", "--report_to", "none"]
    command += ["--max_steps", "2", "--train_pairs", "8", "--validation_pairs", "1", "--batch_size", "2"]
    command += ["--probe_every", "1", "--flip", "0.5", "--objective.preset", "backshan", "--condition_dropout", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    for stage in ("controlnet", "joint"):
        folder = tmp_path / "run" / stage
        assert "conditioning: latents" in (folder / "training_config.yaml").read_text()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and all("pair_accuracy_blank_back" in line for line in lines)
        assert (folder / "validation.csv").exists()
    finished = BackToFrontPipeline.from_pretrained(tmp_path / "run" / "joint" / "pipeline")
    config = finished.controlnet.config
    assert config.conditioning == "latents" and config.conditioning_channels == finished.vae.config.latent_channels
    untrained = BackToFrontPipeline.from_pretrained(tmp_path / "run" / "prior" / "pipeline")
    assert not torch.equal(finished.controlnet.conv_in.weight, untrained.controlnet.conv_in.weight)
