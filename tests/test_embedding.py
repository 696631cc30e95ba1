"""What of a run goes into the package: half precision, no path of the run, all or nothing, and its record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, LCMScheduler
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.training import embedding
from backshan_diffusers.training.config import STAGES, TrainingConfig
from backshan_diffusers.training.embedding import embed, record
from backshan_diffusers.training.run import TrainingRun

ROOT = Path(__file__).parents[1]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps in each stage, in a folder whose name stands in no other text."""
    folder = tmp_path_factory.mktemp("whereabouts")
    sizes = {"model": TINY, "crop_sizes": (32, 64), "train_pairs": 4, "validation_pairs": 2, "batch_size": 2}
    every = {"max_steps": 2, "log_every": 1, "checkpoint_every": 2, "validate_every": 1}
    quiet = {"objective": {"preset": "mse"}, "report_to": "none"}
    TrainingRun(TrainingConfig(output_dir=str(folder), **quiet, **sizes, **every)).run()
    return folder


@pytest.fixture(scope="module")
def embedded(run, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("package") / "mini"
    embed(run, target)
    return target


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_are_those_of_the_last_stage_rounded_to_half_precision(run, embedded):
    finished = run / "joint" / "pipeline"
    for name in ("vae", "unet", "controlnet"):
        trained, stored = (load_file(folder / name / WEIGHTS) for folder in (finished, embedded))
        assert trained.keys() == stored.keys()
        assert all(tensor.dtype == torch.float32 for tensor in trained.values())
        assert all(torch.equal(stored[key], trained[key].half()) for key in trained)
        assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    trained, stored = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (finished, embedded))
    assert all(torch.equal(stored[key], trained[key]) for key in trained)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_the_embedded_folder_opens_and_draws(run, embedded):
    back = Image.new("RGB", (64, 64), "teal")
    fronts = []
    for folder in (run / "joint" / "pipeline", embedded):
        pipeline = BackToFrontPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        fronts.append(pipeline(back, generator=noise, num_inference_steps=2, output_type="pt").images)
    assert not torch.equal(*fronts)
    assert (fronts[0] - fronts[1]).abs().max() < 0.05


def test_fresh_noise_changes_the_sampler_and_not_the_noise_schedule(run, embedded, tmp_path):
    target = tmp_path / "mini"
    done = embed_mini(*("--run", str(run), "--target", str(target), "--record", str(tmp_path), "--fresh-noise"))
    assert done.returncode == 0, done.stderr
    trained, fresh = (BackToFrontPipeline.from_pretrained(folder).scheduler for folder in (embedded, target))
    assert (type(trained), type(fresh)) == (DDIMScheduler, LCMScheduler)
    for name in ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "clip_sample"):
        assert fresh.config[name] == trained.config[name]
    assert torch.equal(fresh.alphas_cumprod, trained.alphas_cumprod)
    for scheduler in (trained, fresh):
        scheduler.set_timesteps(4)
    assert fresh.timesteps.tolist() == trained.timesteps.tolist() == [999, 749, 499, 249]
    fresh.set_timesteps(1000)


def test_weights_may_be_means_with_those_of_an_earlier_run(run, embedded, tmp_path):
    earlier = run / "controlnet" / "pipeline"
    embed(run, tmp_path / "mini", average_with=earlier)
    for name in ("unet", "controlnet"):
        before, after, mean = (
            load_file(folder / name / WEIGHTS) for folder in (earlier, run / "joint" / "pipeline", tmp_path / "mini")
        )
        assert any(not torch.equal(before[key], after[key]) for key in after)
        assert all(torch.equal(mean[key], ((before[key] + after[key]) / 2).half()) for key in after)
    same = ("vae/" + WEIGHTS, "text_encoder/model.safetensors")
    assert all((tmp_path / "mini" / name).read_bytes() == (embedded / name).read_bytes() for name in same)
    records = [
        yaml.safe_load((folder / "training_config.yaml").read_text()) for folder in (tmp_path / "mini", embedded)
    ]
    assert records[0] == records[1] | {"averaged": True} and "averaged" not in records[1]


def test_what_is_no_pipeline_is_not_averaged(run, tmp_path):
    with pytest.raises(ValueError, match="is no pipeline to average with: name the folder of a finished one."):
        embed(run, tmp_path / "mini", average_with=tmp_path)
    assert not os.listdir(tmp_path)


def test_no_file_names_a_folder_of_the_run(run, embedded):
    configs = (run / "joint" / "pipeline").glob("*/config.json")
    assert any(run.name in path.read_text() for path in configs), "nothing to forget: the test shows nothing"
    for name, data in content(embedded).items():
        assert run.name.encode() not in data, name
        assert b"_name_or_path" not in data, name


def test_its_config_lies_beside_it_without_the_places_of_the_run(run, embedded):
    told = yaml.safe_load((embedded / "training_config.yaml").read_text())
    trained = yaml.safe_load((run / "joint" / "training_config.yaml").read_text())
    assert told == {name: value for name, value in trained.items() if name not in ("output_dir", "cache_dir")}


def test_the_size_is_that_of_the_folder(run, tmp_path):
    size = embed(run, tmp_path / "mini")
    assert size == sum(len(data) for data in content(tmp_path / "mini").values())


def test_a_pipeline_that_is_too_large_changes_nothing(run, tmp_path, monkeypatch):
    target = tmp_path / "mini"
    size = embed(run, target)
    (target / "mark").touch()  # of the older one
    before = content(target)
    monkeypatch.setattr(embedding, "LIMIT", size - 1)
    with pytest.raises(ValueError, match=r"allowed: train a smaller one\.$"):
        embed(run, target)
    assert content(target) == before
    assert os.listdir(tmp_path) == ["mini"]
    monkeypatch.setattr(embedding, "LIMIT", size)
    embed(run, target)
    assert content(target).keys() == before.keys() - {"mark"}


def test_what_is_no_pipeline_is_not_replaced(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    with pytest.raises(ValueError, match="name a pipeline's folder or a new one"):
        embed(run, tmp_path / "photos")
    assert content(tmp_path) == {"photos/one.png": b""}


def test_an_embedded_pipeline_that_was_put_aside_comes_back_even_if_the_next_one_is_refused(tmp_path):
    (tmp_path / ".mini.replaced").mkdir()
    (tmp_path / ".mini.replaced" / "file").write_text("old")
    with pytest.raises(ValueError, match="holds no finished run"):
        embed(tmp_path / "no run", tmp_path / "mini")
    assert content(tmp_path) == {"mini/file": b"old"}


# The record


def test_the_record_holds_the_files_of_every_stage_and_their_curves(run, tmp_path):
    folder = tmp_path / "docs" / "record"
    record(run, folder)
    kept = {"training_config.yaml": "{}.yaml", "metrics.jsonl": "{}.jsonl", "validation.csv": "{}-validation.csv"}
    expected = {new.format(stage): (run / stage / old).read_bytes() for stage in STAGES for old, new in kept.items()}
    written = content(folder)
    with Image.open(folder / "curves.png") as curves:
        assert curves.width == 4 * 4 * 80  # four plots of 4 inches at 80 px an inch
        assert len(curves.convert("RGB").getcolors(1 << 20)) > 50
    assert written.pop("curves.png")
    assert written == expected


def test_the_record_leaves_out_stages_that_were_not_run(run, tmp_path):
    (tmp_path / "part").mkdir()
    for stage in STAGES[2:]:  # as in a run from a trained base
        (tmp_path / "part" / stage).symlink_to(run / stage)
    record(tmp_path / "part", tmp_path / "record")
    assert {path.name.partition(".")[0].partition("-")[0] for path in (tmp_path / "record").iterdir()} == {
        "controlnet",
        "joint",
        "curves",
    }
    with Image.open(tmp_path / "record" / "curves.png") as curves:
        assert curves.width == 2 * 4 * 80


# The script


def embed_mini(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / "embed_mini.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_script_embeds_and_records(run, embedded, tmp_path):
    target, folder = tmp_path / "mini", tmp_path / "record"
    names = ["--run", str(run), "--target", str(target), "--record", str(folder)]
    done = embed_mini(*names)
    assert done.returncode == 0, done.stderr
    assert content(target) == content(embedded)
    assert len(content(folder)) == 3 * len(STAGES) + 1
    assert done.stdout == f"{target}: {sum(map(len, content(target).values())) / 1e6:.1f} MB\n"
    assert embed_mini(*names, "--average-with", str(run / "controlnet" / "pipeline")).returncode == 0
    assert "averaged: true" in (target / "training_config.yaml").read_text()


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    done = embed_mini("--run", str(tmp_path), "--target", str(tmp_path / "mini"), "--record", str(tmp_path / "record"))
    assert done.returncode == 2
    assert "holds no finished run: train one with examples/configs/mini.yaml first." in done.stderr
    assert not os.listdir(tmp_path)
