"""The embedded weights: what they weigh, how they open, and that they do what they were trained for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.data import load_pairs
from backshan_diffusers.evaluation.metrics import METRICS

BACKS = 8


@pytest.fixture(scope="module")
def mini() -> BackToFrontPipeline:
    pipeline = BackToFrontPipeline.from_pretrained(MINI)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(load_pairs("wardrobe", split="validation", size=128, count=1000).select(range(500, 500 + BACKS)))


def generate(pipeline, backs: list[Image.Image]) -> list[np.ndarray]:
    generators = [torch.Generator().manual_seed(index) for index in range(len(backs))]
    return [np.asarray(image) for image in pipeline(backs, generator=generators).images]


@pytest.fixture(scope="module")
def fronts(mini, rows) -> list[np.ndarray]:
    return generate(mini, [row["back"] for row in rows])


def mean(name: str, fronts: list[np.ndarray], rows: list[dict]) -> float:
    return float(np.mean([METRICS[name].of(front, row) for front, row in zip(fronts, rows)]))


def test_the_folder_is_small_and_holds_no_pickle():
    files = [path for path in Path(MINI).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_weights_are_stored_in_half_precision_and_open_in_float32(mini):
    for name in ("unet", "vae", "controlnet"):
        stored = load_file(Path(MINI, name, "diffusion_pytorch_model.safetensors"))
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for name in ("unet", "vae", "controlnet", "text_encoder"):
        assert getattr(mini, name).dtype == torch.float32


def test_the_record_says_how_pictures_are_read(mini):
    config = mini.controlnet.config
    assert (config.conditioning, config.mirror, config.image_size) == ("rgb", True, 128)


def test_fronts_resemble_the_truth_more_than_what_comes_without_a_back(mini, rows, fronts):
    blanks = generate(mini, [Image.new("RGB", (128, 128), "white")] * len(rows))
    for name in ("person_l1", "head_l1", "garment_colour_difference"):
        assert mean(name, fronts, rows) < mean(name, blanks, rows)
    assert mean("person_ssim", fronts, rows) > mean("person_ssim", blanks, rows)


@pytest.mark.xfail(strict=True, reason="the interim weights have seen too few pairs to beat the mirrored back's head")
def test_heads_are_turned_round(rows, fronts):
    mirrored = [np.asarray(ImageOps.mirror(row["back"])) for row in rows]
    assert mean("head_l1", fronts, rows) < mean("head_l1", mirrored, rows)


def test_each_front_is_nearest_to_its_own_truth(rows, fronts):
    truths = np.stack([np.asarray(row["front"], dtype=np.float32) for row in rows])
    distances = np.abs(np.stack(fronts).astype(np.float32)[:, None] - truths[None]).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(len(rows))).mean() >= 0.75


def test_the_stock_pipeline_draws_the_same_front(rows, fronts):
    stock = StableDiffusionControlNetPipeline.from_pretrained(MINI, safety_checker=None, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    front = stock(
        "Front side of the person",
        image=ImageOps.mirror(rows[0]["back"]),
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=20,
        guidance_scale=1.0,
    ).images[0]
    assert np.abs(np.asarray(front).astype(int) - fronts[0].astype(int)).max() <= 2
