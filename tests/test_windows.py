"""Windows of pictures that ControlNet and U-Net learn from: that both views show the same place, at the same scale."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import pair_arrays, tiny_config, tiny_pipeline

from backshan_diffusers.conditioning import control_image, control_latents
from backshan_diffusers.training.augmentation import Augmentation
from backshan_diffusers.training.batches import StepPairs, StepSampler
from backshan_diffusers.training.caching import encode
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.estimate import rehearse
from backshan_diffusers.training.run import TrainingRun

ALL = np.arange(8)
CHANGES = {"flip": 0.5, "affine": (5.0, 0.05, 0.1), "colour_jitter": (0.1, 0.1, 0.1, 0.0)}


def masked_pairs():
    random = np.random.RandomState(1)
    faces, heads = (np.packbits(random.rand(8, 64, 64) < 0.3, axis=-1) for _ in range(2))
    return replace(pair_arrays(), faces=faces, masks={"front_head": heads})


def taken(pairs, window=None, multiple=1, step=3, **augmentation) -> StepPairs:
    return StepPairs(pairs, ALL, Augmentation(**augmentation), StepSampler(0, "joint"), step, window, multiple)


def tops(windows: np.ndarray, whole: np.ndarray) -> list[int]:
    """At which heights of the whole pictures the windows begin, in their middle from left to right."""
    side, window = whole.shape[1], windows.shape[1]
    left = (side - window) // 2
    return [
        next(
            top
            for top in range(side - window + 1)
            if np.array_equal(of[top : top + window, left : left + window], part)
        )
        for part, of in zip(windows, whole, strict=True)
    ]


@pytest.mark.parametrize("augmentation", [{}, CHANGES])
def test_both_views_weights_and_faces_are_seen_through_one_window(augmentation):
    pairs = masked_pairs()
    part, whole = taken(pairs, 32, **augmentation), taken(pairs, **augmentation)
    places = tops(part.backs, whole.backs)
    assert len(set(places)) > 2
    assert tops(part.fronts, whole.fronts) == places
    assert tops(part.pictures("backs", mirror=True), whole.backs[:, :, ::-1]) == places
    focus = {"front_head": 4.0}
    for top, windows, of in zip(places, part.weights(focus), whole.weights(focus), strict=True):
        assert np.array_equal(windows, of[top : top + 32, 16:48])
    for top, windows, of in zip(places, part.faces(), whole.faces(), strict=True):
        assert np.array_equal(windows, of[top : top + 32, 16:48])


def test_detail_is_as_fine_in_a_window_as_in_the_whole_picture():
    """But for its border, beyond which it sees nothing."""
    pairs = pair_arrays()
    part, whole = taken(pairs, 32), taken(pairs)
    places = tops(part.backs, whole.backs)
    for top, windows, of in zip(places, part.unseen(9.0), whole.unseen(9.0), strict=True):
        np.testing.assert_allclose(windows[1:-1, 1:-1], of[top + 1 : top + 31, 17:47], rtol=1e-6)


def test_heights_are_multiples_from_the_top_to_the_bottom():
    pairs = pair_arrays()
    seen = {top for step in range(8) for top in tops(taken(pairs, 32, 8, step).backs, pairs.backs)}
    assert seen == {0, 8, 16, 24, 32}
    assert tops(taken(pairs, 32, 8).backs, pairs.backs) == tops(taken(pairs, 32, 8).backs, pairs.backs)


@pytest.mark.parametrize("conditioning", ["rgb", "canny+rgb", "latents"])
@pytest.mark.parametrize("augmentation", [{}, {"flip": 0.5}, CHANGES])
def test_a_batch_shows_the_window_in_every_part(tmp_path, conditioning, augmentation):
    """From caches, from cached pictures in either orientation, and where pictures are never the same twice."""
    (tmp_path / "cache").mkdir()
    objective = {"preset": "paper", "front_latents": "own", "adversarial_weight": 0.5}
    config = tiny_config(
        tmp_path, objective=objective, batch_size=8, window_sizes=(32,), condition_dropout=0.5, **augmentation
    )
    pipeline, pairs, sampler = tiny_pipeline(conditioning), pair_arrays(), StepSampler(0, "joint")
    batch = TrainingRun(config)._joint_stage(config, pipeline, pairs)[1](0, sampler)
    factor = pipeline.vae_scale_factor
    part = StepPairs(pairs, batch["items"].numpy(), config.augmentation(), sampler, 0, 32, factor)
    np.testing.assert_allclose(batch["fronts"].permute(0, 2, 3, 1).numpy(), part.fronts / 127.5 - 1, atol=1e-6)
    shapes = {name: tuple(batch[name].shape[-2:]) for name in ("latents", "noise", "back_latents")}
    assert set(shapes.values()) == {(32 // factor, 32 // factor)}
    for name in ("back_control", "front_control", "blank_control", "disturbance"):
        assert batch[name].shape[-2:] == (32, 32), name
    assert torch.equal(
        batch["back_control"][~batch["shown"]], batch["blank_control"].expand(8, -1, -1, -1)[~batch["shown"]]
    )
    shown = batch["shown"].tolist()
    assert set(shown) == {True, False}
    if conditioning == "latents":
        torch.testing.assert_close(batch["front_control"], control_latents(batch["latents"], 32))
    elif conditioning == "rgb":
        expected = torch.stack([control_image(each, conditioning, True) for each in part.backs])
        assert torch.equal(batch["back_control"][shown], expected[shown])
    if "affine" in augmentation:
        torch.testing.assert_close(batch["latents"], encode(part.fronts, pipeline.vae))


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_cached_latents_are_seen_where_the_pictures_are(tmp_path, flip):
    (tmp_path / "cache").mkdir()
    config = tiny_config(tmp_path, batch_size=8, window_sizes=(32,), flip=flip)
    pipeline, pairs, sampler = tiny_pipeline(), pair_arrays(), StepSampler(0, "joint")
    batch = TrainingRun(config)._joint_stage(config, pipeline, pairs)[1](0, sampler)
    factor, items = pipeline.vae_scale_factor, batch["items"].numpy()
    part, whole = (StepPairs(pairs, items, config.augmentation(), sampler, 0, window, factor) for window in (32, None))
    places, left = tops(part.fronts, whole.fronts), 16 // factor
    assert len(set(places)) > 2
    for seen, latents, top in zip(batch["latents"], encode(whole.fronts, pipeline.vae), places, strict=True):
        rows = slice(top // factor, (top + 32) // factor)
        torch.testing.assert_close(seen, latents[:, rows, left : left + 32 // factor])


def test_sizes_come_in_turn_and_of_larger_ones_there_are_fewer(tmp_path):
    (tmp_path / "cache").mkdir()

    def shapes(**changes) -> list[tuple[int, int]]:
        config = tiny_config(tmp_path, batch_size=8, **changes)
        make_batch = TrainingRun(config)._joint_stage(config, tiny_pipeline(), pair_arrays())[1]
        batches = [make_batch(number, StepSampler(0, "joint")) for number in range(4)]
        assert all(len(batch["items"]) == len(batch["latents"]) == len(batch["noise"]) for batch in batches)
        return [(len(batch["items"]), batch["back_control"].shape[-1]) for batch in batches]

    assert shapes() == [(8, 64)] * 4
    assert shapes(window_sizes=(32, 64, 64)) == [(8, 32), (2, 64), (2, 64), (8, 32)]
    # the micro-batches of a step are alike, so that all of their pairs count as much
    assert shapes(window_sizes=(32, 64), gradient_accumulation_steps=2) == [(8, 32), (8, 32), (2, 64), (2, 64)]


@pytest.mark.parametrize("cached_contrast", [False, True])
def test_a_run_learns_from_windows_and_generates_whole_pictures(tmp_path, cached_contrast):
    windows = {"window_sizes": (32, 64), "gradient_accumulation_steps": 2}
    stages = {"vae": {}, "prior": windows, "joint": windows | {"cached_contrast": cached_contrast}}
    config = tiny_config(tmp_path, batch_size=4, stages=stages)
    assert TrainingRun(config).run().is_dir()


def test_windows_of_several_sizes_cost_their_mean(tmp_path):
    def cost(*windows: int) -> int:
        values = {"window_sizes": windows, "batch_size": 4, "objective": {"preset": "mse"}, "crop_sizes": (32,)}
        return rehearse(tiny_config(tmp_path, **values)).stages[-1].step_flops

    whole, small, large = cost(), cost(32), cost(64)
    assert whole == large  # four pairs of the smallest size there is
    assert small < large / 3
    assert cost(32, 64, 64) < whole / 3  # a quarter as many pairs of the larger


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window_sizes": (20,)},
            r"window_sizes is \[20\]: give multiples of 16 up to image_size, 64, or an empty list",
        ),
        ({"window_sizes": (64, 128)}, "give multiples of .* up to image_size, 64"),
        ({"window_sizes": (0,)}, "give multiples of .* up to image_size, 64"),
        ({"stages": {"vae": {}, "prior": {"window_sizes": (20,)}}}, r"window_sizes is \[20\]: give multiples"),
        ({"stages": {"vae": {"window_sizes": (32,)}}}, "an autoencoder learns from crops, so give crop_sizes there"),
    ],
)
def test_impossible_windows_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, **changes)


def test_windows_that_a_base_cannot_see_are_refused(tmp_path):
    config = tiny_config(tmp_path, window_sizes=(20,), model=ModelSize(), base_model="x")
    with pytest.raises(ConfigError, match="give multiples of"):
        TrainingRun(config)._joint_stage(config, tiny_pipeline(), pair_arrays())
