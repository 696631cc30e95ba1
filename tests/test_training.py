"""Stages, batches, caches, the loop and its resume, with real models at tiny size."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, tiny_pipeline

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.data import load_pairs
from backshan_diffusers.objective import PRESETS, Objective, backshan_loss
from backshan_diffusers.training.batches import (
    Draws,
    back_control_batch,
    crop_batch,
    front_control_batch,
    latent_batch,
)
from backshan_diffusers.training.caching import PairArrays, cache_latents, cache_pairs, to_pixels
from backshan_diffusers.training.checkpoints import checkpoint_steps, save_checkpoint
from backshan_diffusers.training.config import STAGES, TrainingConfig, load_config
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.stages import AutoencoderStage, ControlStage, PriorStage, diffuse
from backshan_diffusers.training.trainer import StageTrainer, learning_rate_factor

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "examples" / "configs" / "smoke.yaml"


def config(folder: Path, **changes) -> TrainingConfig:
    values = {
        "model": replace(TINY),
        "train_pairs": 8,
        "validation_pairs": 2,
        "batch_size": 2,
        "max_steps": 4,
        "checkpoint_every": 2,
        "validate_every": 4,
        "log_every": 1,
        "crop_sizes": (32, 64),
        "warmup_steps": 1,
        "objective": "paper",
    }
    return TrainingConfig(output_dir=str(folder), **{**values, **changes})


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
        "groups": torch.arange(batch),
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
    expected = backshan_loss(PRESETS["paper"], prediction, target, *features, group_ids=batch["groups"])
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


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_epoch_shows_every_item_once_in_a_new_order():
    draws = Draws(seed=1, stage="joint")
    epochs = [np.concatenate([draws.indices(step, 3, 12) for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_processes_share_a_step_without_overlap():
    alone = Draws(1, "joint").indices(2, 4, 16)
    shared = [Draws(1, "joint", process, 2).indices(2, 2, 16) for process in range(2)]
    assert np.concatenate(shared).tolist() == alone.tolist()


def test_random_numbers_depend_on_seed_stage_step_process_and_purpose():
    variants = [Draws(0, "joint"), Draws(1, "joint"), Draws(0, "prior"), Draws(0, "joint", 1, 2)]
    values = [torch.rand(1, generator=draws.generator(3, "noise")).item() for draws in variants]
    values += [torch.rand(1, generator=variants[0].generator(*args)).item() for args in ((4, "noise"), (3, "crop"))]
    assert len(set(values)) == len(values)
    assert values[0] == torch.rand(1, generator=variants[0].generator(3, "noise")).item()


def test_control_batch_flips_the_back_alone_and_blanks_only_backs():
    pairs, controlnet = pair_arrays(), tiny_pipeline().controlnet
    indices = np.array([5, 2])
    backs = back_control_batch(pairs, indices, controlnet, torch.Generator(), 0.0)
    fronts = front_control_batch(pairs, indices, controlnet)
    for item, index in enumerate(indices):
        back, front = (controls[item].permute(1, 2, 0).numpy() for controls in (backs, fronts))
        np.testing.assert_allclose(back, pairs.backs[index][:, ::-1] / 255, atol=1e-6)
        np.testing.assert_allclose(front, pairs.fronts[index] / 255, atol=1e-6)
    assert (back_control_batch(pairs, indices, controlnet, torch.Generator(), 1.0) == 1).all()
    assert pairs.backs[5].min() == 0  # the cache itself is left as it was


def test_an_unmirrored_model_gets_unmirrored_backs():
    pairs, controlnet = pair_arrays(), tiny_pipeline(mirror=False).controlnet
    controls = back_control_batch(pairs, np.array([4]), controlnet, torch.Generator(), 0.0)
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


def test_crops_come_from_their_own_pictures():
    pairs = pair_arrays()
    crops = crop_batch(pairs, np.array([3, 6]), 16, torch.Generator().manual_seed(0))["pixels"]
    assert crops.shape == (4, 3, 16, 16)
    for crop, source in zip(crops, (pairs.backs[3], pairs.backs[6], pairs.fronts[3], pairs.fronts[6]), strict=True):
        windows = to_pixels(source[None])[0].unfold(1, 16, 1).unfold(2, 16, 1)
        assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).any()


# --- caches ----------------------------------------------------------------------------------------------------------


def test_cached_pairs_are_the_pairs(tmp_path):
    pairs = cache_pairs("wardrobe", "validation", 64, 8, tmp_path, workers=1)
    rows = load_pairs("wardrobe", split="validation", size=64, count=8)
    for index, row in enumerate(rows):
        assert np.array_equal(pairs.backs[index], np.asarray(row["back"]))
        assert np.array_equal(pairs.fronts[index], np.asarray(row["front"]))
    ids = [row["group_id"] for row in rows]
    same = [[a == b for b in ids] for a in ids]
    assert (pairs.groups[:, None] == pairs.groups[None]).tolist() == same
    assert cache_pairs("wardrobe", "train", 64, 8, tmp_path, workers=1).key != pairs.key
    assert not list(tmp_path.glob("*.tmp"))


def test_latents_are_cached_by_the_autoencoders_weights(tmp_path):
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    with torch.no_grad():
        expected = pipeline.vae.encode(to_pixels(pairs.fronts)).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(first, expected)
    pipeline.vae.encoder.conv_in.weight.data.mul_(1.5)
    assert not torch.equal(first, cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()))
    assert len(list(tmp_path.iterdir())) == 2


def test_scaled_latents_have_a_cache_of_their_own(tmp_path):
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    pipeline.vae.register_to_config(scaling_factor=2 * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()), 2 * first)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, warmup_steps=10, max_steps=100) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[70] == 1.0
    assert factors[85] == pytest.approx(0.5) and factors[100] == 0.0


def train(folder: Path, **changes) -> Path:
    return TrainingRun(config(folder, **changes)).run()


def losses(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "joint" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


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


def test_latents_of_the_trained_autoencoder_have_unit_deviation(finished):
    pipeline = BackToFrontPipeline.from_pretrained(finished / "vae" / "pipeline")
    pairs = cache_pairs("wardrobe", "train", 64, 8, finished / "cache", 1)
    assert float(cache_latents(pairs, pipeline.vae, finished / "cache", Accelerator()).std()) == pytest.approx(
        1, rel=0.01
    )


def test_resume_is_bit_identical(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run = tmp_path / "run"
    shutil.rmtree(run / "joint" / "pipeline")
    shutil.rmtree(run / "joint" / "checkpoint-4")
    before = losses(finished)
    train(run)
    assert losses(run)[len(before) :] == [line for line in before if line[0] > 2]
    for model in ("unet", "controlnet"):
        name = f"joint/pipeline/{model}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(run / name), load_file(finished / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_finished_run_does_nothing_more(finished):
    before = losses(finished)
    train(finished)
    assert losses(finished) == before


def test_averaged_weights_are_what_is_saved_and_what_is_restored(tmp_path):
    pipeline = tiny_pipeline()
    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    settings = config(tmp_path, learning_rate=0.05)
    latents = torch.randn(8, 4, 8, 8)

    def make_batch(step, draws):
        return {"latents": latents[:2], "prompts": torch.zeros(2, 7, 16)}

    trainer = StageTrainer(Accelerator(), stage, make_batch, settings, "prior", tmp_path)
    start = pipeline.unet.conv_in.weight.detach().clone()
    seen = []
    trainer.train(lambda step: seen.append(pipeline.unet.conv_in.weight.detach().clone()))
    raw = pipeline.unet.conv_in.weight.detach()
    assert len(seen) == 1 and not torch.equal(seen[0], raw)
    assert (seen[0] - start).norm() < (raw - start).norm()
    assert pipeline.unet.training


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    pipeline = tiny_pipeline()

    def make_batch(step, draws):
        return {"latents": torch.full((2, 4, 8, 8), float("nan")), "prompts": torch.zeros(2, 7, 16)}

    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    trainer = StageTrainer(Accelerator(), stage, make_batch, config(tmp_path), "prior", tmp_path)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        trainer.train(lambda step: None)


def test_a_broken_gradient_never_reaches_the_weights(tmp_path):
    pipeline = tiny_pipeline()
    weight = pipeline.unet.conv_in.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()

    def make_batch(step, draws):
        return {"latents": torch.ones(2, 4, 8, 8), "prompts": torch.zeros(2, 7, 16)}

    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    trainer = StageTrainer(Accelerator(), stage, make_batch, config(tmp_path), "prior", tmp_path)
    with pytest.raises(FloatingPointError, match="gradient norm of the unet is"):
        trainer.train(lambda step: None)
    assert torch.equal(weight, before)
    assert checkpoint_steps(tmp_path) == []


def test_an_unfinished_checkpoint_is_never_found(tmp_path):
    (tmp_path / "checkpoint-9.tmp").mkdir()
    accelerator = Accelerator()
    for step in (1, 2, 10):
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    assert checkpoint_steps(tmp_path) == [2, 10]


# --- config and script -----------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_its_stages(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("max_steps: 5\nseed: 3\nstages:\n  joint: {max_steps: 7, batch_size: 2}\n  vae:\n")
    plain = load_config(path, output_dir="out")
    assert plain.stage("joint").max_steps == 7 and plain.stage("vae").max_steps == 5
    assert plain.stage_names() == ["vae", "joint"]
    changed = load_config(path, output_dir="out", max_steps=1)
    assert changed.stage("joint").max_steps == 1 and changed.stage("joint").batch_size == 2


def test_a_trained_base_begins_at_controlnet():
    assert TrainingConfig(output_dir="out", base_model="folder").stage_names() == ["controlnet", "joint"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 5", "unknown field 'max_step'"),
        ("stages: {joint: {lr: 1}}", "unknown field 'lr'"),
        ("stages: {late: {}}", "stages 'late' does not exist"),
        ("objective: best", "objective 'best' does not exist: choose from mse, paper"),
        ("conditioning: depth", "conditioning 'depth' does not exist"),
        ("batch_size: 0", "batch_size is 0"),
        ("model: {image_size: 60}", "image_size is 60"),
        ("{", "not a readable YAML file"),
    ],
)
def test_bad_configs_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path, output_dir="out")


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


def test_a_run_is_embedded_in_half_precision_with_its_record(finished, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "embed_mini.py"), "--run", str(finished)]
    command += ["--target", str(tmp_path / "mini"), "--record", str(tmp_path / "record")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stored = load_file(tmp_path / "mini" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = load_file(finished / "joint" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], trained[name].half()) for name in trained)
    assert Image.open(tmp_path / "record" / "curves.png").width > 4 * 64
    written = {path.name for path in (tmp_path / "record").iterdir()}
    for stage in ("vae", "prior", "controlnet", "joint"):
        assert {f"{stage}.jsonl", f"{stage}.yaml", f"{stage}-validation.csv"} <= written


def test_embedding_without_a_finished_run_says_so(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "embed_mini.py"), "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "holds no finished run" in done.stderr
