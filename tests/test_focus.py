"""Parts of the fronts that count more than others: from the masks of the data to the weights of a loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import pair_arrays, step_pairs, tiny_config, tiny_pipeline

from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.arrays import read_arrays
from backshan_diffusers.data.pairs import PairsError
from backshan_diffusers.training.batches import StepSampler, cell_weights, crop_batch, detail, kept_cells
from backshan_diffusers.training.caching import cache_pairs, to_pixels
from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.order import RandomOrder
from backshan_diffusers.training.run import TrainingRun

MASKS = ("front_person", "front_head")


def wardrobe(count=4):
    return load_pairs("wardrobe", split="train", size=64, count=count)


def touched(rows, name):
    return np.stack([np.asarray(row[name]) > 0 for row in rows])


def test_masks_are_kept_beside_the_pictures(tmp_path):
    rows = wardrobe()
    pairs = cache_pairs(rows, tmp_path, 1, masks=MASKS)
    for name in MASKS:
        assert np.array_equal(np.unpackbits(pairs.masks[name], axis=-1), touched(rows, name))
    assert pairs.faces is None and set(pairs.masks) == set(MASKS)
    without = cache_pairs(rows, tmp_path, 1)
    assert not without.masks and without.key != pairs.key
    masked = cache_pairs(rows, tmp_path, 1, "blank", MASKS)
    assert np.array_equal(masked.masks["front_head"], pairs.masks["front_head"])
    assert np.array_equal(np.unpackbits(masked.faces, axis=-1), touched(rows, "front_face"))


def test_the_order_in_which_masks_are_asked_for_does_not_matter(tmp_path):
    rows = wardrobe()
    pairs = cache_pairs(rows, tmp_path, 1, "blank", MASKS[::-1])
    for name in MASKS:
        assert np.array_equal(np.unpackbits(pairs.masks[name], axis=-1), touched(rows, name))
    assert np.array_equal(np.unpackbits(pairs.faces, axis=-1), touched(rows, "front_face"))
    assert cache_pairs(rows, tmp_path, 1, "blank", MASKS).key == pairs.key


def test_a_source_without_such_masks_is_refused():
    row = wardrobe(1)[0] | {"front_head": None}
    with pytest.raises(PairsError, match=f"the pair {row['item_id']} has no front_head mask: choose a source"):
        read_arrays([row], MASKS)


def test_where_two_parts_overlap_the_larger_weight_holds(tmp_path):
    rows = wardrobe()
    pairs = cache_pairs(rows, tmp_path, 1, masks=MASKS)
    person, head = (touched(rows, name) for name in MASKS)
    assert (person & head).any() and (person & ~head).any()
    focus = tiny_config(tmp_path, person_weight=3, head_weight=8).focus()
    weights = step_pairs(pairs, np.arange(4)).weights(focus)
    assert np.array_equal(weights, np.where(head, 8, np.where(person, 3, 1)))
    assert weights.dtype == np.float32
    focus = tiny_config(tmp_path, person_weight=8, head_weight=3).focus()
    weights = step_pairs(pairs, np.arange(4)).weights(focus)
    assert np.array_equal(weights, np.where(person, 8, np.where(head, 3, 1)))
    flipped = step_pairs(pairs, np.arange(4), flip=1.0).weights(focus)
    assert np.array_equal(flipped, weights[..., ::-1])


def test_what_counts_once_needs_no_masks(tmp_path):
    assert tiny_config(tmp_path).focus() == {}
    assert tiny_config(tmp_path, head_weight=2).focus() == {"front_head": 2}
    with pytest.raises(ConfigError, match="head_weight is 0.5: give a number of at least 1"):
        tiny_config(tmp_path, head_weight=0.5)
    with pytest.raises(ConfigError, match="unseen_weight is 0.5: give a number of at least 1"):
        tiny_config(tmp_path, unseen_weight=0.5)
    with pytest.raises(ConfigError, match="person_weight is inf"):
        tiny_config(tmp_path, person_weight=float("inf"))


@pytest.mark.parametrize(("side", "around"), [(32, 1), (64, 1), (128, 3), (180, 5)])
def test_detail_is_what_differs_from_the_mean_around_it(side, around):
    picture = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    found = detail(picture)
    assert found.dtype == np.float32
    for y, x in ((0, 0), (side - 1, 1), (side // 2, side // 3), (7, side - 2)):
        square = picture[0, max(0, y - around) : y + around + 1, max(0, x - around) : x + around + 1]
        assert found[0, y, x] == pytest.approx(picture[0, y, x] - square.reshape(-1, 3).mean(axis=0), abs=1e-3)


def test_the_detail_that_the_flipped_back_does_not_show_counts_by_how_much_it_differs():
    pairs = pair_arrays(2)
    pairs.fronts[:] = pairs.backs[:, :, ::-1]
    assert (step_pairs(pairs, np.arange(2)).unseen(200.0) == 1).all()
    pairs.backs[:], pairs.fronts[:] = 40, 40
    pairs.fronts[:, :, 32:] = 90  # a shade of its own, and a line: only their edges are detail
    pairs.fronts[:, 10:50, 12] = (250, 40, 40)
    weights = step_pairs(pairs, np.arange(2)).unseen(200.0)
    assert weights.dtype == np.float32
    assert (weights[:, 30, 40:] == 1).all() and (weights[:, 30, 20:30] == 1).all()
    difference = 2 / 3 * 210 / 3 / 255  # of the line and the mean of three columns, in one of three channels
    assert weights[1, 30, 12] == pytest.approx(1 + 199 * difference**2)
    assert weights[1, 30, 13] == pytest.approx(1 + 199 * (difference / 2) ** 2)
    flipped = step_pairs(pairs, np.arange(2), flip=1.0).unseen(200.0)
    assert np.array_equal(flipped, weights[..., ::-1])


def test_what_moves_with_its_back_is_still_seen():
    pairs = pair_arrays(2)
    pairs.fronts[:] = pairs.backs[:, :, ::-1]
    together = step_pairs(pairs, np.arange(2), affine=(0.0, 0.2, 0.0))
    apart = step_pairs(pairs, np.arange(2), affine=(0.0, 0.2, 0.0), affine_shared=False)
    assert not np.array_equal(together.fronts, pairs.fronts)
    assert together.unseen(200.0).mean() < 1.5 < 4 < apart.unseen(200.0).mean()


def test_a_cell_counts_as_its_heaviest_pixel():
    weights = np.ones((1, 8, 8), dtype=np.float32)
    weights[0, 1, 6], weights[0, 2, 5], weights[0, 7, 0] = 5, 2, 3
    assert cell_weights(weights, 4).tolist() == [[[[1, 5], [3, 1]]]]


def test_crops_bring_the_weights_of_their_own_pixels(tmp_path):
    numbered = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    pairs = replace(pair_arrays(3), masks={"front_head": np.packbits(pair_arrays(3).backs[..., 0] > 127, axis=-1)})
    pairs.fronts[:] = pairs.fronts // 2 + numbered // 2
    batch = crop_batch(step_pairs(pairs, np.arange(3)), 16, {"front_head": 4.0}, torch.Generator().manual_seed(0))
    assert batch["weights"].shape == (6, 1, 16, 16) and (batch["weights"][:3] == 1).all()
    weights = step_pairs(pairs, np.arange(3)).weights({"front_head": 4.0})
    for crop, given, front, whole in zip(
        batch["pixels"][3:], batch["weights"][3:], pairs.fronts, weights, strict=True
    ):
        windows = to_pixels(front[None])[0].unfold(1, 16, 1).unfold(2, 16, 1)
        places = (windows == crop[:, None, None]).all(dim=(0, 3, 4)).nonzero()
        assert len(places) == 1
        top, left = places[0].tolist()
        assert np.array_equal(given[0], whole[top : top + 16, left : left + 16])
        assert len(given.unique()) == 2


def test_crops_look_for_detail_that_counts():
    mask = np.zeros((100, 64, 64), dtype=bool)
    mask[:, 24:40, 24:40] = True
    pairs = replace(pair_arrays(100), masks={"front_head": np.packbits(mask, axis=-1)})
    shares = []
    for weight in (1.001, 50.0):
        focus, random = {"front_head": weight}, torch.Generator().manual_seed(0)
        weights = crop_batch(step_pairs(pairs, np.arange(100)), 16, focus, random)["weights"]
        shares.append(float((weights[100:] > 1).any(dim=(1, 2, 3)).float().mean()))
    assert shares[0] < 0.7 < 0.75 < shares[1]  # two crops in five touch the mask; of four nearly always one does


@pytest.mark.parametrize("unseen", [1.0, 20.0])
def test_the_denoising_stages_weigh_cells_and_leave_masked_faces_out(tmp_path, unseen):
    pairs = cache_pairs(wardrobe(), tmp_path / "cache", 1, "blur", MASKS)
    config = tiny_config(tmp_path, train_pairs=4, person_weight=3, head_weight=8, unseen_weight=unseen)
    run, pipeline, sampler = TrainingRun(config), tiny_pipeline(), StepSampler(0, "joint")
    indices = sampler.indices(0, config.batch_size, RandomOrder(4))
    step = step_pairs(pairs, indices)
    by_place = cell_weights(step.weights(config.focus()), 8) * kept_cells(step.faces(), 8)
    expected = by_place * cell_weights(step.unseen(unseen), 8)
    for stage in (run._prior_stage, run._joint_stage):
        batch = stage(config, pipeline, pairs)[1](0, sampler)
        weights = batch["weights"]
        assert torch.equal(weights, expected) and torch.equal(batch["place_weights"], by_place)
        assert 0 in weights and ({1, 3} <= set(weights.unique().tolist())) == (unseen == 1)


def test_unseen_detail_alone_weighs_no_places(tmp_path):
    pairs = cache_pairs(wardrobe(), tmp_path / "cache", 1)
    config, sampler = tiny_config(tmp_path, train_pairs=4, unseen_weight=20), StepSampler(0, "joint")
    batch = TrainingRun(config)._joint_stage(config, tiny_pipeline(), pairs)[1](0, sampler)
    step = step_pairs(pairs, sampler.indices(0, config.batch_size, RandomOrder(4)))
    assert torch.equal(batch["weights"], cell_weights(step.unseen(20.0), 8)) and "place_weights" not in batch


def test_a_run_with_parts_that_count_more(tmp_path):
    stages = {
        "vae": {"max_steps": 1, "person_weight": 2.0},
        "prior": {"max_steps": 1},
        "joint": {"max_steps": 1, "head_weight": 8.0},
    }
    TrainingRun(tiny_config(tmp_path, train_pairs=4, validation_pairs=1, checkpoint_every=1, stages=stages)).run()
    for name in ("front_person", "front_head"):
        assert len(list((tmp_path / "cache").glob(f"*-{name}.npy"))) == 1
    assert "head_weight: 8.0" in (tmp_path / "joint" / "training_config.yaml").read_text()
