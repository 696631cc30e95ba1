"""Stages, batches, caches and the loop, with real models at tiny size."""

import copy
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, tiny_config, tiny_pipeline, tiny_prior

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.conditioning import CONDITIONINGS
from backshan_diffusers.data import Pairs, load_pairs, wardrobe
from backshan_diffusers.objective import PRESETS, Objective, backshan_loss, cosine_matrix, pair_accuracy
from backshan_diffusers.training import caching, validation
from backshan_diffusers.training.base import open_base
from backshan_diffusers.training.batches import (
    StepSampler,
    back_control_batch,
    crop_batch,
    crop_shape,
    front_control_batch,
    latent_batch,
)
from backshan_diffusers.training.caching import PairArrays, cache_latents, cache_pairs, to_pixels
from backshan_diffusers.training.checkpoints import checkpoint_steps
from backshan_diffusers.training.config import STAGES, ConfigError, TrainingConfig, load_config
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import ModelSize, build_controlnet, build_pipeline
from backshan_diffusers.training.stages import AutoencoderStage, ControlStage, PriorStage, diffuse, noise_schedule
from backshan_diffusers.training.trainer import StageTrainer, learning_rate_factor
from backshan_diffusers.training.validation import generate, rebuild
from backshan_diffusers.training.whitening import whiten_latents

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "examples" / "configs" / "smoke.yaml"


def pair_arrays(count: int = 8, size: int = 64) -> PairArrays:
    random = np.random.RandomState(0)
    backs, fronts = (random.randint(0, 255, (count, size, size, 3)).astype(np.uint8) for _ in range(2))
    return PairArrays(backs, fronts, np.arange(count) // 2, "key")


def control_inputs(pipeline, batch: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(batch, 4, 8, 8, generator=generator),
        "prompts": torch.randn(batch, 7, 16, generator=generator),
        "back_control": torch.rand(batch, 3, 64, 64, generator=generator),
        "front_control": torch.rand(batch, 3, 64, 64, generator=generator),
        "groups": torch.arange(batch) // 2,
        "shown": torch.tensor([True] * (batch - 1) + [False]),
    }


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_diffuse_equals_the_formula(kind):
    scheduler = tiny_pipeline().scheduler
    scheduler.register_to_config(prediction_type=kind)
    latents = torch.randn(6, 4, 8, 8)
    noised, timesteps, target = diffuse(scheduler, latents, torch.Generator().manual_seed(5))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    torch.testing.assert_close(noised, alpha * latents + sigma * noise)
    torch.testing.assert_close(target, noise if kind == "epsilon" else alpha * noise - sigma * latents)


def test_timesteps_cover_the_schedule_evenly():
    scheduler = tiny_pipeline().scheduler
    _, timesteps, _ = diffuse(scheduler, torch.zeros(10, 4, 8, 8), torch.Generator().manual_seed(1))
    assert sorted(int(t) // 100 for t in timesteps) == list(range(10))
    assert timesteps.tolist() != sorted(timesteps.tolist())


# --- stages ----------------------------------------------------------------------------------------------------------


def test_one_pass_for_the_pair_equals_two():
    pipeline = tiny_pipeline()
    stage = ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, PRESETS["paper"], train_unet=True)
    stage.eval()
    batch = control_inputs(pipeline)
    terms = stage(batch, torch.Generator().manual_seed(2))
    noised, timesteps, target = diffuse(pipeline.scheduler, batch["latents"], torch.Generator().manual_seed(2))
    back, front = (
        pipeline.controlnet(noised, timesteps, batch["prompts"], batch[name])
        for name in ("back_control", "front_control")
    )
    prediction = pipeline.unet(
        noised,
        timesteps,
        batch["prompts"],
        down_block_additional_residuals=back.down_block_res_samples,
        mid_block_additional_residual=back.mid_block_res_sample,
    ).sample
    features = [BackshanControlNetModel.control_features(output) for output in (back, front)]
    expected = backshan_loss(PRESETS["paper"], prediction, target, *features, batch["groups"], batch["shown"])
    expected["pair_accuracy"] = pair_accuracy(cosine_matrix(*features), batch["shown"])
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-5)


def test_mse_never_looks_at_the_front_picture():
    pipeline = tiny_pipeline()
    stage = ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, PRESETS["mse"], train_unet=True)
    batch = control_inputs(pipeline)
    before = stage(batch, torch.Generator().manual_seed(2))["loss"]
    batch["front_control"] = torch.full_like(batch["front_control"], float("nan"))
    assert torch.equal(before, stage(batch, torch.Generator().manual_seed(2))["loss"])
    batch["back_control"] = 1 - batch["back_control"]
    assert not torch.equal(before, stage(batch, torch.Generator().manual_seed(2))["loss"])


@pytest.mark.parametrize(("train_unet", "learns"), [(False, {"controlnet"}), (True, {"controlnet", "unet"})])
def test_only_the_models_of_a_stage_learn(train_unet, learns):
    pipeline = tiny_pipeline()
    objective = Objective(contrastive_weight=0.5)
    stage = ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, objective, train_unet)
    stage(control_inputs(pipeline), torch.Generator())["loss"].backward()
    models = {"controlnet": pipeline.controlnet, "unet": pipeline.unet}
    assert {n for n, m in models.items() if any(p.grad is not None for p in m.parameters())} == learns
    assert {id(p) for p in stage.parameters()} == {id(p) for n in learns for p in models[n].parameters()}


def test_prior_stage_is_the_mse_of_the_unet_alone():
    pipeline = tiny_pipeline()
    batch = control_inputs(pipeline)
    loss = PriorStage(pipeline.unet, pipeline.scheduler)(batch, torch.Generator().manual_seed(4))["loss"]
    noised, timesteps, target = diffuse(pipeline.scheduler, batch["latents"], torch.Generator().manual_seed(4))
    prediction = pipeline.unet(noised, timesteps, batch["prompts"]).sample
    assert loss.item() == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-5)


def test_autoencoder_loss_equals_the_formula():
    vae = tiny_pipeline().vae
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    stage = AutoencoderStage(vae, kl_weight=0.1, edge_weight=2.0, colour_weight=3.0)
    terms = stage({"pixels": pixels}, torch.Generator().manual_seed(0))
    posterior = vae.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    rebuilt = vae.decode(posterior.mean + posterior.std * noise).sample
    red, green, blue = (rebuilt - pixels).detach().numpy().swapaxes(0, 1)
    opponent = (red + green + blue) / 3**0.5, 3 * (red - green) / 2**0.5, 3 * (red + green - 2 * blue) / 6**0.5
    error = np.stack(opponent, axis=1)
    l1 = np.abs(error).mean()
    edges = np.abs(error[..., 1:] - error[..., :-1]).mean() + np.abs(error[..., 1:, :] - error[..., :-1, :]).mean()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    assert terms["loss"].item() == pytest.approx(l1 + 2 * edges + 0.1 * kl.mean().item(), rel=1e-4)
    assert terms["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
    assert terms["l1"].item() == pytest.approx((rebuilt - pixels).abs().mean().item(), rel=1e-4)


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
    assert min(heard) > 0.1, heard  # 0 with the usual last convolution
    if "rgb" in conditioning:
        assert min(first[1:]) > 2 * first[0]  # colours differ less than brightness does
        grey = torch.zeros_like(picture)
        grey[:, -3:] = 0.8
        middle = controlnet.controlnet_cond_embedding.conv_in(grey)[..., 1:-1, 1:-1]
        torch.testing.assert_close(middle, torch.zeros_like(middle), atol=1e-5, rtol=0)
        light = controlnet.controlnet_cond_embedding.conv_in(grey + grey / 8)[..., 8, 8].norm()
        assert 0.1 < light < 0.6  # 0.1 brighter in each colour
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
    epochs = [np.concatenate([sampler.indices(step, 3, 12) for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_processes_share_a_step_without_overlap():
    alone = StepSampler(1, "joint").indices(2, 4, 16)
    shared = [StepSampler(1, "joint", process, 2).indices(2, 2, 16) for process in range(2)]
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


def test_control_batch_flips_the_back_alone_and_blanks_only_backs():
    pairs, controlnet = pair_arrays(), tiny_pipeline().controlnet
    indices = np.array([5, 2])
    backs, shown = back_control_batch(pairs, indices, controlnet, torch.Generator(), 0.0)
    assert shown.all()
    fronts = front_control_batch(pairs, indices, controlnet)
    for item, index in enumerate(indices):
        back, front = (controls[item].permute(1, 2, 0).numpy() for controls in (backs, fronts))
        np.testing.assert_allclose(back, pairs.backs[index][:, ::-1] / 255, atol=1e-6)
        np.testing.assert_allclose(front, pairs.fronts[index] / 255, atol=1e-6)
    many = np.arange(8).repeat(50)
    blanked, shown = back_control_batch(pairs, many, controlnet, torch.Generator().manual_seed(0), 0.25)
    assert [bool((control == 1).all()) for control in blanked] == (~shown).tolist()
    assert 0.15 < float((~shown).float().mean()) < 0.35
    assert pairs.backs[5].min() == 0  # the cache itself is left as it was


def test_an_unmirrored_model_gets_unmirrored_backs():
    pairs, controlnet = pair_arrays(), tiny_pipeline(mirror=False).controlnet
    controls, _ = back_control_batch(pairs, np.array([4]), controlnet, torch.Generator(), 0.0)
    np.testing.assert_allclose(controls[0].permute(1, 2, 0).numpy(), pairs.backs[4] / 255, atol=1e-6)


def test_edges_are_found_with_the_recorded_thresholds():
    pairs = pair_arrays()
    edges = [
        front_control_batch(pairs, np.array([0]), tiny_pipeline("canny", **thresholds).controlnet)
        for thresholds in ({}, {"canny_low_threshold": 900, "canny_high_threshold": 1500})
    ]
    assert edges[1].sum() < edges[0].sum()


def test_prompts_are_dropped_at_their_rate():
    prompts = torch.stack([torch.ones(3, 2), torch.zeros(3, 2)])
    latents = torch.arange(400).view(400, 1, 1, 1).float()
    batch = latent_batch(latents, np.arange(400), prompts, torch.Generator().manual_seed(0), 0.25)
    assert 0.15 < float((batch["prompts"][:, 0, 0] == 0).float().mean()) < 0.35
    assert batch["latents"].flatten().tolist() == list(range(400))


def test_larger_crops_come_from_fewer_pairs_in_turn():
    assert [crop_shape(step, 8, (32, 64, 128)) for step in range(4)] == [(32, 8), (64, 2), (128, 1), (32, 8)]


def test_crops_come_from_their_own_pictures():
    pairs = pair_arrays()
    crops = crop_batch(pairs, np.array([3, 6]), 16, torch.Generator().manual_seed(0))["pixels"]
    assert crops.shape == (4, 3, 16, 16)
    for crop, source in zip(crops, (pairs.backs[3], pairs.backs[6], pairs.fronts[3], pairs.fronts[6]), strict=True):
        windows = to_pixels(source[None])[0].unfold(1, 16, 1).unfold(2, 16, 1)
        assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).any()


# --- caches ----------------------------------------------------------------------------------------------------------


def test_cached_pairs_are_the_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "CHUNK", 3)
    rows = load_pairs("wardrobe", split="validation", size=64, count=8)
    pairs = cache_pairs(rows, tmp_path, workers=1)
    for index, row in enumerate(rows):
        assert np.array_equal(pairs.backs[index], np.asarray(row["back"]))
        assert np.array_equal(pairs.fronts[index], np.asarray(row["front"]))
    ids = [row["group_id"] for row in rows]
    same = [[a == b for b in ids] for a in ids]
    assert (pairs.groups[:, None] == pairs.groups[None]).tolist() == same
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cache_belongs_to_its_rows_and_to_the_code_that_drew_them(tmp_path, monkeypatch):
    def keys():
        options = [("train", 64, 2), ("validation", 64, 2), ("train", 128, 2), ("train", 64, 3)]
        return [load_pairs("wardrobe", split=split, size=size, count=n).key for split, size, n in options]

    before = keys()
    assert len(set(before)) == 4
    monkeypatch.setattr(wardrobe, "DRAWING", wardrobe.DRAWING + 1)
    assert not set(before) & set(keys())
    rows = load_pairs("wardrobe", split="train", size=64, count=2)
    first = cache_pairs(rows, tmp_path, workers=1)
    monkeypatch.setattr(wardrobe, "DRAWING", wardrobe.DRAWING + 1)
    assert cache_pairs(rows, tmp_path, workers=1).key != first.key


def test_a_source_made_as_the_docs_say_can_be_trained_on(tmp_path):
    class Greys:
        capacity, size, key = 5, 32, "greys 1"

        def row(self, index):
            picture = Image.new("RGB", (32, 32), (index, index, index))
            return {"back": picture, "front": picture, "group_id": str(index // 2)}

    with pytest.MonkeyPatch.context() as patch:  # what is local to a test cannot be sent to another process
        patch.setattr(
            caching, "ProcessPoolExecutor", lambda workers, mp_context: nullcontext(SimpleNamespace(map=map))
        )
        pairs = cache_pairs(Pairs(Greys(), range(5)), tmp_path, workers=1)
    assert pairs.backs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert pairs.groups.tolist() == [0, 0, 1, 1, 2]


def test_latents_are_cached_by_the_autoencoders_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "SHARD", 3)
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    with torch.no_grad():
        expected = pipeline.vae.encode(to_pixels(pairs.fronts)).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(first, expected)
    pipeline.vae.encoder.conv_in.weight.data.mul_(1.5)
    assert not torch.equal(first, cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()))
    assert len(list(tmp_path.iterdir())) == 6  # three shards of each


def test_scaled_latents_have_a_cache_of_their_own(tmp_path):
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    pipeline.vae.register_to_config(scaling_factor=2 * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()), 2 * first)


# --- whitening -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_whitening_changes_latents_and_not_what_they_stand_for():
    vae, pictures = tiny_pipeline().vae, pair_arrays().fronts
    pixels = to_pixels(pictures)
    before = vae.encode(pixels).latent_dist
    rebuilt = vae.decode(before.mean).sample
    whiten_latents(vae, pictures, batch_size=3)
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
    fronts = generate(pipeline, pictures, seed=5)
    for index, front in enumerate(fronts):
        generator = torch.Generator().manual_seed(5 + index)
        alone = pipeline(Image.fromarray(pictures[index]), generator=generator).images[0]
        np.testing.assert_allclose(np.asarray(front, int), np.asarray(alone, int), atol=1)
    again = [rebuild(pipeline.vae, pictures[index : index + 1])[0] for index in range(4)]
    for one, other in zip(rebuild(pipeline.vae, pictures), again, strict=True):
        np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)


def test_held_out_errors_are_those_of_the_saved_weights(finished):
    held_out = cache_pairs(load_pairs("wardrobe", split="validation", size=64, count=2), finished / "cache", 1)
    for stage in STAGES:
        step, logged = (finished / stage / "validation.csv").read_text().splitlines()[-1].split(",")
        pipeline = BackToFrontPipeline.from_pretrained(finished / stage / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        if stage == "vae":
            results = rebuild(pipeline.vae, held_out.fronts)
        else:
            results = generate(pipeline, held_out.backs, seed=0)
        expected = np.mean(np.abs(np.stack(results) / 255 - held_out.fronts[: len(results)] / 255))
        assert step == "4" and float(logged) == pytest.approx(expected, abs=2e-4), stage


def test_a_step_is_adamw_on_clipped_gradients_at_the_scheduled_rate(tmp_path):
    settings = tiny_config(
        tmp_path, learning_rate=0.01, warmup_steps=4, max_steps=3, max_grad_norm=0.1, weight_decay=0.3, ema_decay=0.5
    )
    stage, make_batch = tiny_prior()
    reference = copy.deepcopy(stage.trained["unet"])
    average = copy.deepcopy(reference)
    optimizer = torch.optim.AdamW(reference.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.3)
    trainer = StageTrainer(Accelerator(), stage, make_batch, settings, "prior", tmp_path)
    trainer.train(lambda step: None)
    norms = []
    for step in range(3):
        batch = make_batch(step, None)
        noised, timesteps, target = diffuse(
            stage.scheduler, batch["latents"], trainer.sampler.generator(step, "noise")
        )
        loss = ((reference(noised, timesteps, batch["prompts"]).sample - target) ** 2).mean()
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
    trainer.train(lambda step: time.sleep(0.5))
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(single) == 4 and line["loss"] == pytest.approx(np.mean(single), abs=2e-6)
    assert line["items_per_second"] > 0


def test_averaged_weights_are_what_is_saved_and_what_is_restored(tmp_path):
    pipeline = tiny_pipeline()
    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    settings = tiny_config(tmp_path, learning_rate=0.05)
    latents = torch.randn(8, 4, 8, 8)

    def make_batch(step, sampler):
        return {"latents": latents[:2], "prompts": torch.zeros(2, 7, 16), "items": torch.arange(2)}

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


# --- config and script -----------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_its_stages(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("max_steps: 5\nseed: 3\nstages:\n  joint: {max_steps: 7, batch_size: 2}\n  vae:\n  prior: {}\n")
    plain = load_config(path, output_dir="out")
    assert plain.stage("joint").max_steps == 7 and plain.stage("vae").max_steps == 5
    assert plain.stage_names() == ["vae", "prior", "joint"]
    changed = load_config(path, output_dir="out", max_steps=1)
    assert changed.stage("joint").max_steps == 1 and changed.stage("joint").batch_size == 2


def test_a_trained_base_begins_at_controlnet():
    assert TrainingConfig(output_dir="out", base_model="folder").stage_names() == ["controlnet", "joint"]


def test_numbers_are_read_as_the_fields_mean_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "learning_rate: 5e-4\nmax_steps: 1e2\nkl_weight: 1\ncrop_sizes: [64]\nmirror: false\nstages:\n  vae:\n"
    )
    read = load_config(path, output_dir="out")
    assert (read.learning_rate, read.max_steps, read.kl_weight) == (0.0005, 100, 1.0)
    assert isinstance(read.max_steps, int) and isinstance(read.kl_weight, float)
    assert load_config(path, output_dir="out", seed=2**53 + 1).seed == 2**53 + 1
    assert read.crop_sizes == (64,) and read.mirror is False and read.conditioning is None
    assert read.stages == {"vae": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 5", "unknown field 'max_step'"),
        ("stages: {joint: {lr: 1}}", "the stage joint has the unknown field 'lr'"),
        ("stages: {late: {}}", "stages 'late' does not exist"),
        ("stages: [vae]", "give stages, each with a colon"),
        ("stages: {vae: 3}", "stages.vae is 3: give lines"),
        ("stages: {joint: {}}", "begins with vae and prior"),
        ("stages: {vae: {}, joint: {}}", "begins with vae and prior"),
        ("stages: {vae: {seed: 3}}", "seed under the stage vae: it belongs to the whole run"),
        ("stages: {vae: {batch_size: 0}}", "batch_size is 0"),
        ("{base_model: x, stages: {vae: {}}}", "vae is no stage of a run from a base_model"),
        ("{base_model: x, model: {image_size: 256}}", "leave model out"),
        ("objective: best", "objective 'best' does not exist: choose from mse, paper"),
        ("conditioning: depth", "conditioning 'depth' does not exist"),
        ("conditioning: [rgb]", "conditioning is .'rgb'.: give a text"),
        ("mirror: 1", "mirror is 1: give true or false"),
        ("batch_size: 0", "batch_size is 0"),
        ("batch_size: 2.5", "batch_size is 2.5: give a whole number"),
        ("batch_size: true", "batch_size is True: give a whole number"),
        (f"batch_size: {'9' * 400}.5", "give a whole number"),
        ("seed: -1", "seed is -1: give a number from 0"),
        (f"seed: {2**63}", "give a number from 0"),
        ("batch_size: many", "batch_size is 'many': give a whole number"),
        ("learning_rate: .nan", "learning_rate is nan: give a number"),
        ("learning_rate: 0", "learning_rate is 0.0: give a positive"),
        ("log_every: 0", "log_every is 0"),
        ("validate_every: 0", "validate_every is 0"),
        ("{log_every: 3, checkpoint_every: 10}", "give a multiple of it"),
        ("condition_dropout: 1.5", "give a share from 0 to 1"),
        ("kl_weight: -1", "kl_weight is -1.0: give a number that is not negative"),
        ("crop_sizes: 32", "crop_sizes is 32: give a list"),
        ("crop_sizes: [30]", "give multiples of 4 up to image_size, 128"),
        ("crop_sizes: [256]", "give multiples of 4 up to image_size, 128"),
        ("model: {image_size: 60}", "image_size is 60: give a multiple of 32"),
        ("model: {depth: 3}", "model has the unknown field 'depth'"),
        ("model: {condition_channels: [8, 8]}", "condition_channels has 2 levels and vae_channels 3"),
        ("model: {unet_attention: [true]}", "unet_attention has 1 levels and unet_channels 4"),
        ("model: {vae_channels: [6, 8, 8]}", "the width 6 cannot be cut into 4 groups"),
        ("just words", "holds no fields"),
        ("{", "not a readable YAML file"),
    ],
)
def test_bad_configs_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(path, output_dir="out")
    assert "\n" not in str(refused.value)


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
    assert open_base(str(tmp_path), 0, conditioning="canny+rgb").controlnet.config.conditioning == "canny+rgb"


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


def test_a_base_that_cannot_be_used_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="^the base_model .* cannot be used: ") as refused:
        open_base(str(tmp_path / "nothing"), 0)
    assert "\n" not in str(refused.value)


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
    chosen = StepSampler(0, "controlnet").indices(0, 8, 8)
    assert batch["groups"].tolist() == pairs.groups[chosen].tolist()
    encoded = [pipeline.encode_prompt(text, "cpu", 1, False)[0][0] for text in ("seen from ahead", "")]
    kinds = [[torch.allclose(prompt, each, atol=1e-5) for each in encoded] for prompt in batch["prompts"]]
    assert {tuple(kind) for kind in kinds} == {(True, False), (False, True)}
    assert {"latents", "back_control", "front_control", "shown"} < set(batch)
    plain = run._control_stage(replace(settings, objective="mse"), pipeline, pairs)[1](0, StepSampler(0, "controlnet"))
    assert "front_control" not in plain
    for share in (0.0, 1.0):
        dropped = replace(settings, condition_dropout=share, prompt_dropout=share)
        batch = run._control_stage(dropped, pipeline, pairs)[1](0, StepSampler(0, "controlnet"))
        assert batch["shown"].all() == (share == 0) and batch["shown"].any() == (share == 0)
        assert bool((batch["back_control"] == 1).all()) == (share == 1)
        prior = run._prior_stage(dropped, pipeline, pairs)[1](0, StepSampler(0, "prior"))
        assert all(torch.allclose(prompt, encoded[int(share)], atol=1e-5) for prompt in prior["prompts"])


def test_the_weights_of_the_autoencoders_loss_are_those_of_the_config(tmp_path):
    settings = tiny_config(tmp_path, kl_weight=0.1, edge_weight=0.2, colour_weight=0.3)
    stage, _ = TrainingRun(settings)._vae_stage(settings, tiny_pipeline(), pair_arrays())
    assert (stage.kl_weight, stage.edge_weight) == (0.1, 0.2)
    torch.testing.assert_close(stage.colours.norm(dim=1), torch.tensor([1, 0.3, 0.3]))


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "examples" / "configs").glob("*.yaml")])
def test_every_shipped_config_loads(name):
    config = load_config(ROOT / "examples" / "configs" / name, output_dir="out")
    assert config.stage_names() == list(STAGES)
    assert all(config.stage(stage).max_steps >= 1 for stage in STAGES)


def script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / "train_backshan.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_script_shows_what_it_would_train():
    done = script("--config", str(SMOKE), "--output_dir", "nowhere", "--dry_run", "--batch_size", "3")
    assert done.returncode == 0, done.stderr
    assert "batch_size: 3" in done.stdout and "controlnet" in done.stdout
    assert not Path("nowhere").exists()


def test_the_script_refuses_bad_arguments_with_exit_code_two():
    done = script("--config", str(SMOKE), "--output_dir", "nowhere", "--objective", "best")
    assert done.returncode == 2 and "objective 'best' does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_train_one_model(tmp_path):
    path = tmp_path / "c.yaml"
    shared = SMOKE.read_text() + "\nstages: {vae: {}, prior: {}}\n"
    path.write_text(shared)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(ROOT / "examples" / "train_backshan.py"),
        "--config",
        str(path),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    command += ["--max_steps", "2", "--train_pairs", "8", "--validation_pairs", "1", "--batch_size", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The finished pipeline is in") == 1
    lines = (tmp_path / "run" / "prior" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "processes: 2" in (tmp_path / "run" / "prior" / "training_config.yaml").read_text()
    BackToFrontPipeline.from_pretrained(tmp_path / "run" / "prior" / "pipeline")
