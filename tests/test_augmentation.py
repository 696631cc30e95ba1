"""Random changes to pairs: both views change together, and a step's changes are a function of the step."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny import pair_arrays, step_pairs, tiny_config, tiny_pipeline

from backshan_diffusers.data import load_pairs
from backshan_diffusers.training.augmentation import Augmentation, move_mask, move_picture, recolour
from backshan_diffusers.training.batches import StepPairs, StepSampler, crop_batch
from backshan_diffusers.training.caching import cache_latents, cache_pairs, encode
from backshan_diffusers.training.config import ConfigError, TrainingConfig
from backshan_diffusers.training.order import RandomOrder
from backshan_diffusers.training.run import TrainingRun

EVERYTHING = {"flip": 0.5, "colour_jitter": (0.2, 0.2, 0.3, 0.05), "affine": (8.0, 0.06, 0.1)}
ALL = np.arange(8)


def config(folder, **changes) -> TrainingConfig:
    return tiny_config(folder, **{"validation_pairs": 1, "batch_size": 4, "crop_sizes": (32,)} | changes)


@pytest.fixture(scope="module")
def smooth():
    """Eight pairs of smooth pictures, each back the mirror image of its front, with masked faces."""
    random = np.random.RandomState(0)
    fronts = np.stack(
        [
            np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))
            for small in random.randint(0, 255, (8, 5, 5, 3)).astype(np.uint8)
        ]
    )
    faces = np.zeros((8, 64, 64), dtype=bool)
    for face, (top, left) in zip(faces, random.randint(16, 40, (8, 2)), strict=True):
        face[top : top + 9, left : left + 7] = True
    backs = np.ascontiguousarray(fronts[:, :, ::-1])
    return replace(pair_arrays(), backs=backs, fronts=fronts, faces=np.packbits(faces, axis=-1))


def middle(pictures: np.ndarray) -> np.ndarray:
    """Without what may have come in from outside."""
    return pictures[:, 14:-14, 14:-14].astype(int)


# --- off -------------------------------------------------------------------------------------------------------------


def test_nothing_changes_by_default(smooth):
    assert not Augmentation().changes_pixels and not Augmentation(flip=0.5).changes_pixels
    indices = np.array([3, 0, 3])
    taken = step_pairs(smooth, indices)
    assert np.array_equal(taken.backs, smooth.backs[indices]) and np.array_equal(taken.fronts, smooth.fronts[indices])
    assert np.array_equal(taken.faces(), np.unpackbits(smooth.faces[indices], axis=-1).astype(bool))
    assert taken.groups().tolist() == [1, 0, 1] and not taken.flipped.any()


def test_changes_of_zero_change_nothing(smooth):
    for nothing in ({"colour_jitter": (0, 0, 0, 0)}, {"affine": (0, 0, 0)}):
        assert not Augmentation(**nothing).changes_pixels
        assert np.array_equal(step_pairs(smooth, ALL, **nothing).fronts, smooth.fronts)
    still = Augmentation(colour_jitter=(0, 0, 0, 0), affine=(0, 0, 0))
    moves, colours = still.moves(1, 64, torch.Generator())[0][0], still.colour_maps(1, torch.Generator())[0]
    assert np.array_equal(move_picture(recolour(smooth.fronts[0], colours), moves), smooth.fronts[0])


# --- flips -----------------------------------------------------------------------------------------------------------


def test_a_flip_flips_both_views_and_the_face(smooth):
    many = ALL.repeat(50)
    taken = step_pairs(smooth, many, flip=0.25)
    assert 0.18 < taken.flipped.float().mean() < 0.32
    faces = np.unpackbits(smooth.faces, axis=-1).astype(bool)
    views = (taken.backs, smooth.backs), (taken.fronts, smooth.fronts), (taken.faces(), faces)
    for made, source in views:
        for picture, index, flipped in zip(made, many, taken.flipped.tolist(), strict=True):
            assert np.array_equal(picture, source[index][:, ::-1] if flipped else source[index])
    assert step_pairs(smooth, ALL, flip=1.0).flipped.all()


def test_flipped_fronts_come_with_their_own_latents(tmp_path):
    pairs, pipeline, sampler = pair_arrays(), tiny_pipeline(), StepSampler(0, "joint")
    run = TrainingRun(config(tmp_path, flip=0.5, prompt_dropout=0.0, batch_size=8))
    for stage in (run._prior_stage, run._joint_stage):
        batch = stage(run.config, pipeline, pairs)[1](1, sampler)
        taken = StepPairs(pairs, sampler.indices(1, 8, RandomOrder(8)), Augmentation(flip=0.5), sampler, 1)
        assert taken.flipped.any() and not taken.flipped.all()
        torch.testing.assert_close(batch["latents"], encode(taken.fronts, pipeline.vae), rtol=1e-4, atol=1e-5)
    kept = list((tmp_path / "cache").glob("*-latents-*.safetensors"))
    assert len(kept) == 2  # of the fronts as they are, and flipped


# --- colours ---------------------------------------------------------------------------------------------------------


def test_colours_of_both_views_change_by_one_map(smooth):
    taken = step_pairs(smooth, ALL, colour_jitter=(0.3, 0.3, 0.5, 0.1))
    # Each back holds the pixels of its front: the same map gives the same pixels, wherever they lie.
    assert np.array_equal(taken.backs, taken.fronts[:, :, ::-1])
    changes = np.abs(taken.fronts.astype(int) - smooth.fronts).mean(axis=(1, 2, 3))
    assert changes.min() > 2 and len(set(changes.round(3))) == 8


def test_colours_change_as_the_formula_says():
    strengths = (0.3, 0.2, 0.5, 0.1)
    (matrix,) = Augmentation(colour_jitter=strengths).colour_maps(1, torch.Generator().manual_seed(7))
    draws = torch.rand(1, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)[0].numpy() * 2 - 1
    brightness, contrast, saturation, hue = (1 + s * d for s, d in zip(strengths[:3] + (0.1,), draws, strict=True))
    axis, angle = np.ones(3) / np.sqrt(3), 2 * np.pi * (hue - 1)
    for colour in np.random.RandomState(0).uniform(0, 255, (20, 3)):
        lit = contrast * (brightness * colour - 127.5) + 127.5
        grey = axis * (axis @ lit)
        vivid = grey + saturation * (lit - grey)
        turned = (  # Rodrigues' rotation
            vivid * np.cos(angle) + np.cross(axis, vivid) * np.sin(angle) + axis * (axis @ vivid) * (1 - np.cos(angle))
        )
        np.testing.assert_allclose(matrix @ [*colour, 1], turned, atol=1e-9)


@pytest.mark.parametrize("part", range(4))
def test_each_part_of_the_jitter_reaches_its_strength_and_no_further(part):
    strengths = tuple(0.2 if part == other else 0.0 for other in range(4))
    maps = Augmentation(colour_jitter=strengths).colour_maps(2000, torch.Generator().manual_seed(0))
    light, red = maps @ [200, 200, 200, 1], maps @ [200, 100, 100, 1]
    if part == 0:
        change = light[:, 0] / 200 - 1
    elif part == 1:
        change = (light[:, 0] - 127.5) / (200 - 127.5) - 1
    elif part == 2:
        change = (red[:, 0] - red[:, 1]) / 100 - 1
    else:
        change = np.arctan2(np.sqrt(3) * (red[:, 1] - red[:, 2]), 2 * red[:, 0] - red[:, 1] - red[:, 2]) / (2 * np.pi)
    assert 0.195 < change.max() <= 0.2 + 1e-9 and -0.2 - 1e-9 <= change.min() < -0.195
    if part >= 2:
        np.testing.assert_allclose(light, 200)  # grey stays grey


# --- movements -------------------------------------------------------------------------------------------------------


def test_a_shared_movement_keeps_the_views_on_each_other(smooth):
    moved = {shared: step_pairs(smooth, ALL, affine=(10, 0.08, 0.1), affine_shared=shared) for shared in (True, False)}
    apart = {
        shared: np.abs(middle(taken.backs[:, :, ::-1]) - middle(taken.fronts)).mean(axis=(1, 2, 3))
        for shared, taken in moved.items()
    }
    assert apart[True].max() < 1 < 2 < apart[False].min()
    assert np.array_equal(moved[True].fronts, moved[False].fronts)
    assert np.abs(middle(moved[True].fronts) - middle(smooth.fronts)).mean(axis=(1, 2, 3)).min() > 2


def test_a_movement_is_a_rotation_a_shift_and_a_scaling_around_the_middle():
    strengths = 20.0, 0.1, 0.2
    (_,), (move,) = Augmentation(affine=strengths).moves(1, 65, torch.Generator().manual_seed(3))
    draws = torch.rand(2, 1, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy() * 2 - 1
    rotation, right, down, scale = draws[1, 0] * [20, 0.1, 0.1, 0.2]
    angle = np.deg2rad(rotation)
    for x, y in [(0, 0), (10, 50), (32, 32)]:
        from_middle = np.array([x - 32, y - 32]) * (1 + scale)
        # y points down: counter-clockwise as it is seen
        turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ from_middle
        np.testing.assert_allclose(move @ [x, y, 1], turned + 32 + 65 * np.array([right, down]), atol=1e-9)


def test_movements_reach_their_strengths_and_no_further():
    backs, fronts = Augmentation(affine=(10, 0.1, 0.2), affine_shared=False).moves(2000, 65, torch.Generator())
    for moves in (backs, fronts):
        scales = np.sqrt(np.linalg.det(moves[:, :, :2])) - 1
        angles = np.rad2deg(np.arctan2(moves[:, 0, 1], moves[:, 0, 0]))
        shifts = (moves @ [32, 32, 1] - 32) / 65
        for values, most in ((scales, 0.2), (angles, 10), (shifts[:, 0], 0.1), (shifts[:, 1], 0.1)):
            assert 0.97 * most < values.max() <= most + 1e-9 and -most - 1e-9 <= values.min() < -0.97 * most
    assert abs(np.corrcoef(backs[:, 0, 2], fronts[:, 0, 2])[0, 1]) < 0.1


def test_a_face_moves_with_its_front(smooth):
    faces = np.unpackbits(smooth.faces, axis=-1).astype(bool)
    painted = replace(smooth, fronts=np.repeat(faces[..., None] * np.uint8(255), 3, axis=3))
    taken = step_pairs(painted, ALL, flip=0.5, affine=(20, 0.1, 0.1))
    seen = taken.fronts[..., 0]
    assert not (~taken.faces() & (seen > 16)).any()  # a cubic picture reaches a little further than a linear mask
    assert ((seen > 127) & taken.faces()).sum() > 0.7 * taken.faces().sum()
    assert not np.array_equal(taken.faces(), faces)


def test_a_moved_mask_holds_every_pixel_that_is_partly_inside():
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 4] = True
    half_right = np.array([[1, 0, 0.5], [0, 1, 0]])
    rows, columns = np.nonzero(move_mask(mask, half_right))
    assert (rows.tolist(), columns.tolist()) == ([4, 4], [4, 5])


def test_between_pixels_pictures_are_interpolated():
    ramp = np.repeat(4 * np.arange(16, dtype=np.uint8)[None, :, None].repeat(16, axis=0), 3, axis=2)
    moved = move_picture(ramp, np.array([[1, 0, 0.5], [0, 1, 0]]))
    assert (moved[:, 3:13] == ramp[:, 3:13] - 2).all()  # half a step less, half a pixel to the left


def test_what_comes_in_continues_the_border():
    picture = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    continued = np.pad(picture, ((0, 5), (7, 0), (0, 0)), mode="edge")
    assert np.array_equal(move_picture(picture, np.array([[1.0, 0, 7], [0, 1, -5]])), continued[5:, :16])


# --- steps -----------------------------------------------------------------------------------------------------------


def test_changes_depend_on_the_step_and_the_process_alone(smooth):
    augmentation = Augmentation(**EVERYTHING)

    def views(step=3, sampler=None):
        taken = StepPairs(smooth, ALL, augmentation, sampler or StepSampler(0, "joint"), step)
        # Fronts first, then backs: what is asked for first must not matter.
        return taken.fronts, taken.backs, taken.faces()

    first = views()
    taken = StepPairs(smooth, ALL, augmentation, StepSampler(0, "joint"), 3)
    again = taken.backs, taken.fronts
    assert np.array_equal(first[1], again[0]) and np.array_equal(first[0], again[1])
    assert taken.backs is again[0] and taken.fronts is again[1]  # they are not made twice
    others = [StepSampler(0, "joint", 1, 2), StepSampler(1, "joint"), StepSampler(0, "prior")]
    for other in (views(step=4), *(views(sampler=sampler) for sampler in others)):
        assert not np.array_equal(first[0], other[0])


def test_crops_are_those_of_changed_pictures(smooth):
    taken = step_pairs(smooth, ALL[:2], flip=1.0, colour_jitter=(0.3, 0.3, 0.5, 0.1))
    crops = crop_batch(taken, 64, {}, torch.Generator().manual_seed(0))["pixels"]
    pictures = np.concatenate([taken.backs, taken.fronts]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(crops.numpy(), pictures / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("names", [("flip", "colour_jitter", "affine"), ("colour_jitter",), ("affine",)])
def test_changed_pixels_are_encoded_in_the_step_and_seen_by_both_branches(tmp_path, smooth, names):
    pipeline, sampler = tiny_pipeline(), StepSampler(0, "joint")
    changes = {name: EVERYTHING[name] for name in names}
    run = TrainingRun(config(tmp_path, prompt_dropout=0.0, condition_dropout=0.0, **changes))
    batch = run._joint_stage(run.config, pipeline, smooth)[1](2, sampler)
    taken = StepPairs(smooth, sampler.indices(2, 4, RandomOrder(8)), run.config.augmentation(), sampler, 2)
    torch.testing.assert_close(batch["latents"], encode(taken.fronts, pipeline.vae))
    for name, pictures in (("back_control", taken.backs[:, :, ::-1]), ("front_control", taken.fronts)):
        np.testing.assert_allclose(batch[name].permute(0, 2, 3, 1).numpy(), pictures / 255, atol=1e-6)
    assert batch["weights"].mean() < 1
    assert not list((tmp_path / "cache").glob("*-latents-*"))


def test_a_run_with_every_change_resumes_bit_for_bit(tmp_path):
    stages = {"vae": {"max_steps": 2}, "prior": {"max_steps": 2}, "joint": {}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        settings = config(folder, mask_face="blur", stages=stages, cache_dir=str(tmp_path / "shared"), **EVERYTHING)
        if folder is stopped:
            shutil.copytree(whole, stopped)
            shutil.rmtree(stopped / "joint" / "pipeline")
            shutil.rmtree(stopped / "joint" / "checkpoint-4")
        TrainingRun(settings).run()
    name = "joint/pipeline/unet/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(stopped / name), load_file(whole / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for folder in (whole, stopped):
        assert not (folder / "cache").exists()
    assert not list((tmp_path / "shared").glob("*-latents-*.safetensors"))
    losses = [json.loads(line)["loss"] for line in (whole / "joint" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and np.isfinite(losses).all()


# --- config ----------------------------------------------------------------------------------------------------------


def test_changes_are_recorded_and_may_differ_from_stage_to_stage(tmp_path):
    settings = config(
        tmp_path, flip=0.5, stages={"vae": {}, "prior": {"affine": (5.0, 0.1, 0.0), "affine_shared": False}}
    )
    assert settings.stage("vae").augmentation() == Augmentation(flip=0.5)
    assert settings.stage("prior").augmentation() == Augmentation(0.5, (), (5.0, 0.1, 0.0), False)
    recorded = asdict(settings.stage("prior"))
    assert (recorded["flip"], recorded["affine"], recorded["affine_shared"]) == (0.5, (5.0, 0.1, 0.0), False)
    assert recorded["colour_jitter"] == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5: give a share from 0 to 1."),
        ({"colour_jitter": [0.1]}, "colour_jitter is .0.1.: give brightness from 0 to 1, contrast from 0 to 1, satu"),
        ({"colour_jitter": [0, 0, 0, 0.6]}, "hue from 0 to 0.5, or an empty list."),
        (
            {"affine": (5.0, -0.1, 0.0)},
            "affine is .5.0, -0.1, 0.0.: give rotation from 0 to 45, translation",
        ),
        ({"affine": (50.0, 0.0, 0.0)}, "affine is .50.0"),
        ({"mask_face": "hide"}, "mask_face 'hide' does not exist: choose from none, blur, blank"),
    ],
)
def test_impossible_changes_are_one_sentence(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_views_of_drawn_pairs_stay_on_each_other(tmp_path):
    """With true silhouettes: the back, flipped, covers the front as well as before."""
    rows = load_pairs("wardrobe", split="validation", size=64, count=8)
    pairs = cache_pairs(rows, tmp_path, 1)
    masks = {
        view: np.stack([np.asarray(row[f"{view}_person"].convert("RGB")) for row in rows])
        for view in ("back", "front")
    }
    silhouettes = replace(pairs, backs=masks["back"], fronts=masks["front"])

    def overlap(**changes):
        taken = step_pairs(silhouettes, ALL, **changes)
        back, front = taken.backs[:, :, ::-1] > 127, taken.fronts > 127
        return (back & front).sum(axis=(1, 2, 3)) / (back | front).sum(axis=(1, 2, 3))

    before = overlap()
    assert before.min() > 0.85
    assert (overlap(flip=0.5, affine=(10, 0.05, 0.1)) > before - 0.05).all()
    assert overlap(affine=(10, 0.05, 0.1), affine_shared=False).mean() < before.mean() - 0.15


def test_latents_of_both_ways_round_are_found_by_later_stages(tmp_path):
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    cache_latents(pairs, pipeline.vae, tmp_path / "cache", Accelerator())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*-latents-*.safetensors")}
    run = TrainingRun(config(tmp_path, flip=0.5))
    run._joint_stage(run.config, pipeline, pairs)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*-latents-*.safetensors")}
    assert len(after) == 2 and before.items() <= after.items()
