"""Metrics against plain formulas, baselines against brute force, intervals against theory, and a whole comparison."""

import json
import os

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage, stats
from tiny import tiny_pipeline

from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.arrays import CHUNK
from backshan_diffusers.data.wardrobe import Wardrobe
from backshan_diffusers.data.wardrobe.tops import CLOSURES
from backshan_diffusers.evaluation import (
    METRICS,
    GeneratedFront,
    MirroredBack,
    NearestTrainingFront,
    colour_difference,
    edge_error,
    l1,
    mean_intervals,
    measure,
    presence,
    share_interval,
    side_correct,
    ssim,
    summarise,
    summarise_presences,
    summarise_sides,
)
from backshan_diffusers.evaluation.baselines import item_seed, nearest, thumbnails


def noise(seed, shape=(24, 20, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def rows():
    return list(load_pairs("wardrobe", split="validation", size=64, count=8))


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


# metrics


def test_l1_is_the_weighted_mean_of_absolute_differences():
    generated, front, mask = noise(0), noise(1), noise(2, (24, 20))
    total = weight = 0.0
    for y in range(24):
        for x in range(20):
            difference = sum(abs(int(generated[y, x, c]) - int(front[y, x, c])) for c in range(3)) / 3 / 255
            total += difference * int(mask[y, x])
            weight += int(mask[y, x])
    assert l1(generated, front, mask) == pytest.approx(total / weight, rel=1e-12)


def test_l1_of_black_and_white_is_1_and_sees_only_the_mask():
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    assert l1(black, white, mask) == 1
    elsewhere = white.copy()
    elsewhere[mask == 0] = 7
    assert l1(elsewhere, white, mask) == 0


def test_ssim_is_that_of_wang_with_a_gaussian_window():
    generated, front, mask = noise(3), noise(4), noise(5, (24, 20))

    def blur(channel):
        return ndimage.gaussian_filter(channel, 1.5, truncate=3.5)

    maps = []
    for c in range(3):
        x, y = generated[..., c].astype(float), front[..., c].astype(float)
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        maps.append(
            (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        )
    expected = (np.mean(maps, axis=0) * mask).sum() / mask.sum(dtype=float)
    assert ssim(generated, front, mask) == pytest.approx(expected, rel=1e-9)
    assert ssim(front, front, mask) == pytest.approx(1)


def lab(rgb):
    """CIE L*a*b* of one sRGB colour under D65, from the definitions of IEC 61966-2-1 and CIE 15."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255])
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    x, y, z = (
        np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116 for t in np.array(matrix) @ linear / (0.95047, 1, 1.08883)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(one, other):
    """Sharma, Wu and Dalal 2005, equations 2 to 22, for one pair of colours with hues that need no wrapping."""
    (l1_, a1, b1), (l2, a2, b2) = one, other
    c_mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(c_mean**7 / (c_mean**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    assert abs(h1 - h2) <= 180
    dl, dc, dh = l2 - l1_, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(h2 - h1) / 2)
    lm, cm, hm = (l1_ + l2) / 2, (c1 + c2) / 2, (h1 + h2) / 2
    t = 1 - 0.17 * np.cos(np.radians(hm - 30)) + 0.24 * np.cos(np.radians(2 * hm))
    t += 0.32 * np.cos(np.radians(3 * hm + 6)) - 0.2 * np.cos(np.radians(4 * hm - 63))
    sl = 1 + 0.015 * (lm - 50) ** 2 / np.sqrt(20 + (lm - 50) ** 2)
    sc, sh = 1 + 0.045 * cm, 1 + 0.015 * cm * t
    rt = -2 * np.sqrt(cm**7 / (cm**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((hm - 275) / 25) ** 2))))
    return np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * dc / sc * dh / sh)


def test_colour_difference_is_ciede2000_weighted_by_the_mask():
    colours = np.array([[[200, 40, 40], [40, 60, 180]], [[90, 140, 60], [5, 5, 5]]], np.uint8)
    others = np.array([[[180, 60, 30], [60, 40, 190]], [[120, 130, 50], [250, 250, 250]]], np.uint8)
    mask = np.array([[255, 100], [40, 0]], np.uint8)
    expected = sum(
        ciede2000(lab(colours[place]), lab(others[place])) * int(mask[place]) for place in ((0, 0), (0, 1), (1, 0))
    ) / (255 + 100 + 40)
    assert colour_difference(others, colours, mask) == pytest.approx(expected, rel=1e-4)
    assert colour_difference(colours, colours, mask) == 0


def test_edge_error_is_that_of_sobel_magnitudes():
    generated, front, mask = noise(6), noise(7), noise(8, (24, 20))
    generated = (generated * 0.6).astype(np.uint8)

    def strength(picture):
        grey = picture.astype(float) @ [0.2125, 0.7154, 0.0721]
        return (np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) * mask).sum()

    assert edge_error(generated, front, mask) == pytest.approx(1 - strength(generated) / strength(front), rel=1e-6)
    assert edge_error(front, generated, mask) == pytest.approx(strength(front) / strength(generated) - 1, rel=1e-6)
    assert edge_error(front, front, mask) == 0
    assert edge_error(front, front // 8, mask) > 5


def test_edge_error_sees_blur_where_l1_prefers_it(rows):
    """A front with its edges in wrong places loses against a blurred one by L1, and wins by its edges."""
    front, mask = np.asarray(rows[0]["front"]), np.asarray(rows[0]["front_person"])
    blurred = ndimage.gaussian_filter(front, (3, 3, 0))
    moved = np.roll(front, 2, axis=1)
    assert l1(blurred, front, mask) < l1(moved, front, mask)
    assert edge_error(blurred, front, mask) > 0.3 > edge_error(moved, front, mask)


@pytest.mark.parametrize("colour", [0, 7, 11, 13, 200, (200, 11, 97)])
def test_edges_of_one_colour_are_refused(colour):
    flat, mask = np.full((24, 20, 3), colour, np.uint8), np.full((24, 20), 255, np.uint8)
    with pytest.raises(ValueError, match="the true front has no edges over the mask: leave this item out"):
        edge_error(noise(0), flat, mask)


@pytest.mark.parametrize("metric", [l1, ssim, colour_difference, edge_error])
def test_what_cannot_be_measured_is_refused_with_one_sentence(metric):
    picture, mask = noise(0), np.full((24, 20), 255, np.uint8)
    with pytest.raises(
        ValueError, match=r"^the mask is empty: a mean over it is not defined, so leave this item out\.$"
    ):
        metric(picture, picture, np.zeros_like(mask))
    with pytest.raises(ValueError, match="make them of one size"):
        metric(picture[:-1], picture, mask)
    with pytest.raises(ValueError, match="the mask is"):
        metric(picture, picture, mask > 0)
    with pytest.raises(ValueError, match="the mask is"):
        metric(picture, picture, mask[:-1])
    with pytest.raises(ValueError, match="a picture is float64"):
        metric(picture / 255, picture, mask)


def test_each_metric_reads_its_own_mask_and_says_what_is_better(rows):
    row, generated = rows[0], np.asarray(rows[0]["back"])[:, ::-1]
    front = np.asarray(row["front"])
    functions = {"person_l1": l1, "head_l1": l1, "person_ssim": ssim, "garment_colour_difference": colour_difference}
    functions |= {"person_edge_error": edge_error}
    masks = {
        "person_l1": "front_person",
        "head_l1": "front_head",
        "person_ssim": "front_person",
        "garment_colour_difference": "front_garments",
        "person_edge_error": "front_person",
    }
    assert METRICS.keys() == functions.keys()
    nearer = ((generated.astype(float) + 3.0 * front) / 4).astype(np.uint8)
    assert METRICS["person_edge_error"].sign == -1
    for key, metric in METRICS.items():
        assert metric.of(generated, row) == functions[key](generated, front, np.asarray(row[masks[key]]))
        if metric.function is not edge_error:  # which does not ask where something is
            assert metric.sign * (metric.of(nearer, row) - metric.of(generated, row)) > 0


# sides


def test_side_correct_compares_only_where_the_sides_differ():
    front = np.full((32, 32, 3), 200, np.uint8)
    front[8:20, 4:8] = 0
    other = front[:, ::-1].copy()
    assert side_correct(front, front, other) is True
    assert side_correct(other, front, other) is False
    assert side_correct(np.full_like(front, 100), front, other) is False  # a tie
    wrong_elsewhere = front.copy()
    wrong_elsewhere[24:] = 0
    assert side_correct(wrong_elsewhere, front, other) is True
    brighter, other_brighter = front + np.uint8(20), other + np.uint8(20)  # less than a tenth: not where sides differ
    other_brighter[8:20, 4:8] = 200
    assert side_correct(brighter, front, other_brighter) is True
    faint = front.copy()
    faint[8:20, 4:8] += 60
    assert side_correct(faint, front, other) is True
    faint[8:20, 4:8] += 60
    faint[8:20, 24:28] = 70
    assert side_correct(faint, front, other) is False


def test_a_side_that_can_hardly_be_seen_has_no_verdict():
    front = np.full((100, 100, 3), 200, np.uint8)
    seen = front.copy()
    seen[:5, :2] = 200 - 26  # 10 of 10,000 pixels by more than a tenth of the range
    assert side_correct(front, front, seen) is True
    seen[0, 0] = 200
    assert side_correct(front, front, seen) is None
    seen[:, :] = 200 - 25
    assert side_correct(front, front, seen) is None


def test_a_thing_drawn_on_the_other_side_has_the_opposite_verdict():
    reader = Wardrobe("validation", 64)
    index = next(index for index in range(60) if reader.scene(index)[0].bag_side)
    front, moved = np.asarray(reader.row(index)["front"]), reader.other_side_fronts(index)["bag"]
    assert side_correct(front, front, moved) is True
    assert side_correct(moved, front, moved) is False


# what only the front shows


def stripe_and_ground() -> tuple[np.ndarray, np.ndarray]:
    """A front with a bright line down the middle of a cloth of three shades, and the same without."""
    without = np.full((64, 64, 3), (60, 90, 120), np.uint8)
    without[::3] += 8
    without[1::3] += 20
    front = without.copy()
    front[10:50, 31:33] = (210, 215, 220)
    return front, without


def test_presence_is_the_share_of_the_thing_that_is_there():
    front, without = stripe_and_ground()
    for share in (0, 0.25, 0.5, 1):
        mixed = (share * front.astype(float) + (1 - share) * without).round().astype(np.uint8)
        assert presence(mixed, front, without) == pytest.approx(share, abs=0.01)
    stronger = np.clip(1.2 * front.astype(float) - 0.2 * without, 0, 255).round().astype(np.uint8)
    assert presence(stronger, front, without) == pytest.approx(1.2, abs=0.01)
    negative = np.clip(2 * without.astype(float) - front, 0, 255).astype(np.uint8)
    assert presence(negative, front, without) < -0.3  # a dark line is no bright one


def test_presence_asks_for_the_thing_and_for_no_colours_around_it():
    front, without = stripe_and_ground()
    for picture, share in ((front, 1), (without, 0)):
        tinted = (picture * 0.7 + np.array([50, 5, 20])).round().astype(np.uint8)
        assert presence(tinted, front, without) == pytest.approx(0.7 * share, abs=0.01)
    elsewhere = front.copy()
    elsewhere[52:] = 0
    elsewhere[:, 40:] = 255
    assert presence(elsewhere, front, without) == pytest.approx(1, abs=1e-6)
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), np.uint8)
    strengths = [presence(each, front, without) for each in noise]
    assert abs(np.mean(strengths)) < 0.02 < np.std(strengths)


def test_presence_finds_what_is_a_64th_of_the_width_aside_and_no_more():
    front, without = (np.repeat(np.repeat(each, 2, 0), 2, 1) for each in stripe_and_ground())  # 128 px
    for shift in (-2, -1, 1, 2):
        moved = without + np.roll(front - without, shift, axis=1)
        assert presence(moved, front, without) == pytest.approx(1, abs=0.01), shift
    for shift in (-5, 5):
        moved = without + np.roll(front - without, shift, axis=1)
        assert presence(moved, front, without) < 0.2, shift
    lower = without + np.roll(front - without, 40, axis=0)
    assert presence(lower, front, without) < 0.75


def test_a_thing_that_can_hardly_be_seen_is_not_looked_for():
    without = np.full((100, 100, 3), 200, np.uint8)
    front = without.copy()
    front[50:55, 50:52] = 200 - 26  # 10 of 10,000 pixels by more than a tenth of the range
    assert presence(front, front, without) == pytest.approx(1, abs=0.01)
    front[50, 50] = 200
    assert presence(front, front, without) is None


@pytest.mark.parametrize("judge", [presence, side_correct])
def test_fronts_that_do_not_fit_are_refused(judge):
    front, other = stripe_and_ground()
    for wrong in ((front[1:], front, other), (front, front, other[1:])):
        with pytest.raises(ValueError, match="make them of one size"):
            judge(*wrong)
    for wrong in ((front / 255, front, other), (front, front, other / 255)):
        with pytest.raises(ValueError, match="a picture is float64"):
            judge(*wrong)


def test_a_drawn_front_has_what_it_has_and_one_without_has_not():
    reader, seen = Wardrobe("validation", 128), set()
    for index in range(40):
        row, without = reader.row(index), reader.fronts_without(index)
        front, mirrored = np.asarray(row["front"]), np.asarray(row["back"])[:, ::-1]
        for thing, picture in without.items():
            if presence(front, front, picture) is None:
                continue
            seen.add(thing)
            assert presence(front, front, picture) == pytest.approx(1, abs=1e-6)
            assert presence(picture, front, picture) == pytest.approx(0, abs=1e-6)
            if thing in CLOSURES:
                assert presence(mirrored, front, picture) < 0.4, (index, thing)
    assert seen > {*CLOSURES, "lapels", "face"}


# baselines


def test_mirrored_back_is_the_back_flipped(rows):
    (front,) = MirroredBack()(rows[:1])
    assert np.array_equal(front, np.asarray(rows[0]["back"].transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)))


def test_thumbnails_are_averages_of_squares():
    pictures = noise(7, (2, 64, 64, 3))
    averages = pictures.reshape(2, 32, 2, 32, 2, 3).mean(axis=(2, 4)).reshape(2, -1)
    small = thumbnails([{"back": PIL.Image.fromarray(picture)} for picture in pictures])
    assert small.shape == (2, 3072)
    assert np.abs(small - averages).max() <= 1  # PIL rounds after each axis


def test_processes_share_the_training_backs_and_keep_their_order():
    rows = load_pairs("wardrobe", split="train", size=64, count=CHUNK + 2)
    expected = thumbnails(rows)
    assert expected.shape == (CHUNK + 2, 3072)
    for count, processes, shared in ((CHUNK + 2, 1, False), (CHUNK, 2, False), (CHUNK + 2, 2, True)):
        before = os.times()
        small = NearestTrainingFront(rows[:count], processes).thumbnails
        assert np.array_equal(small, expected[:count])
        assert (os.times().children_user > before.children_user) is shared


def test_nearest_is_that_of_brute_force_and_the_first_of_equals():
    generator = np.random.default_rng(8)
    keys = generator.integers(0, 256, (2500, 30)).astype(np.uint8)
    queries = generator.integers(0, 256, (40, 30)).astype(np.uint8)
    brute = [min(range(len(keys)), key=lambda k: ((keys[k].astype(int) - q) ** 2).sum()) for q in queries.astype(int)]
    assert nearest(queries, keys).tolist() == brute
    keys[[100, 1500, 2400]] = queries[0]
    assert nearest(queries[:1], keys).tolist() == [100]


def test_nearest_training_front_belongs_to_the_nearest_back(rows):
    training_rows = load_pairs("wardrobe", split="train", size=64, count=12)
    system = NearestTrainingFront(training_rows)
    backs = [row["back"].resize((32, 32), PIL.Image.Resampling.BOX) for row in training_rows]
    for row in rows[:3]:
        query = np.asarray(row["back"].resize((32, 32), PIL.Image.Resampling.BOX)).astype(float)
        best = int(np.argmin([np.linalg.norm(query - np.asarray(back)) for back in backs]))
        assert np.array_equal(system([row])[0], np.asarray(training_rows[best]["front"]))
    assert np.array_equal(system([training_rows[5]])[0], np.asarray(training_rows[5]["front"]))


def test_generated_fronts_do_not_depend_on_the_batch(pipeline, rows):
    system = GeneratedFront(pipeline, seed=3, num_inference_steps=2)
    together = system(rows[:3])
    alone = system([rows[2]])[0]
    assert alone.shape == (64, 64, 3)
    assert alone.dtype == np.uint8
    assert np.abs(together[2].astype(int) - alone).max() <= 1  # rounding of float noise to 8 bit
    other_seed = GeneratedFront(pipeline, seed=4, num_inference_steps=2)([rows[2]])[0]
    assert np.abs(other_seed.astype(int) - alone).max() > 10
    assert np.abs(together[0].astype(int) - together[2]).max() > 10


def test_fronts_have_the_size_of_their_backs_whatever_that_of_the_model(pipeline, rows):
    larger = dict(rows[0], back=rows[0]["back"].resize((96, 96)))
    assert GeneratedFront(pipeline, seed=0, num_inference_steps=1)([larger])[0].shape == (96, 96, 3)


def test_steps_reach_the_pipeline(pipeline, rows):
    short, long = (GeneratedFront(pipeline, 0, steps)(rows[:1])[0] for steps in (1, 3))
    recorded = GeneratedFront(pipeline, 0)(rows[:1])[0]
    assert not np.array_equal(short, long)
    assert np.array_equal(recorded, long)  # the tiny pipeline records 3


def test_each_row_may_have_a_prompt_of_its_own(pipeline, rows):
    def made(*some, **prompts):
        return GeneratedFront(pipeline, 0, 1, **prompts)(some)

    recorded = pipeline.controlnet.config.default_prompt
    words = {rows[0]["item_id"]: "open over white", rows[1]["item_id"]: recorded}
    told = made(*rows[:2], prompt_of=lambda row: words[row["item_id"]])
    assert np.abs(told[1].astype(int) - made(rows[1])[0]).max() <= 1  # rounding of float noise to 8 bit
    assert np.abs(told[0].astype(int) - made(rows[0], prompt_of=lambda row: "open over white")[0]).max() <= 1
    assert np.abs(told[0].astype(int) - made(rows[0])[0]).max() > 1


def test_a_blank_back_is_white_and_keeps_the_noise(pipeline, rows):
    blank = GeneratedFront(pipeline, seed=0, num_inference_steps=2, blank=True)
    white = dict(rows[0], back=PIL.Image.new("RGB", (64, 64), "white"))
    assert np.array_equal(blank(rows[:1])[0], GeneratedFront(pipeline, 0, 2)([white])[0])
    assert not np.array_equal(blank(rows[:1])[0], GeneratedFront(pipeline, 0, 2)(rows[:1])[0])


def test_item_seeds_are_fixed_and_differ():
    assert item_seed(0, "wardrobe-test-0000000") == 61132871344208048  # `printf "0 wardrobe-test-0000000" | sha256sum`
    assert len({item_seed(seed, item) for seed in range(3) for item in ("a", "b", "1 a")}) == 9


# statistics


def mean_interval(values, groups, seed=0):
    """Of one quantity."""
    return mean_intervals(np.asarray(values)[:, None], groups, seed)[0]


def test_an_interval_of_independent_items_is_that_of_the_normal_approximation():
    values = np.random.default_rng(9).gamma(4, size=400)
    interval = mean_interval(values, range(400))
    reach = 1.959964 * values.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.1 * reach)
    assert (interval.items, interval.groups) == (400, 400)


def test_more_items_of_the_same_groups_do_not_narrow_the_interval():
    values = np.random.default_rng(10).normal(size=60)
    once = mean_interval(values, range(60))
    five_times = mean_interval(np.repeat(values, 5), np.repeat(np.arange(60), 5).tolist())
    assert (five_times.low, five_times.high) == pytest.approx((once.low, once.high))
    as_if_independent = mean_interval(np.repeat(values, 5), range(300))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (once.high - once.low)


def test_groups_of_different_size_weigh_by_their_items():
    values, groups = [1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]
    interval = mean_interval(values, groups)
    assert interval.mean == 2
    assert (interval.low, interval.high) == (1, 5)  # both groups drawn twice are among the resamples


def test_intervals_cover_the_truth_19_times_in_20():
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(100):
        shared, own = generator.normal(size=40), generator.normal(size=80)
        interval = mean_interval(np.repeat(shared, 2) + own, np.repeat(np.arange(40), 2).tolist())
        covered += interval.low <= 0 <= interval.high
    assert 88 <= covered <= 99


def test_columns_and_seeds():
    values = np.random.default_rng(12).normal(size=(30, 2))
    first, second = mean_intervals(values, range(30), seed=1)
    for column, interval in enumerate((first, second)):
        alone = mean_interval(values[:, column], range(30), seed=1)
        assert (interval.mean, interval.low, interval.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert first.low != pytest.approx(mean_interval(values[:, 0], range(30), seed=2).low)
    assert mean_interval(values[:, 0], range(30)) == mean_interval(values[:, 0], range(30), seed=0)


@pytest.mark.parametrize(("hits", "trials"), [(0, 12), (12, 12), (7, 20), (250, 500)])
def test_a_share_has_the_wilson_interval_of_its_groups(hits, trials):
    values = [1.0] * hits + [0.0] * (trials - hits)
    expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    once = share_interval(values, range(trials))
    twice = share_interval(values * 2, [*range(trials)] * 2)
    for interval in (once, twice):
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert (interval.mean, interval.groups) == (hits / trials, trials)
    assert (once.items, twice.items) == (trials, 2 * trials)


def test_a_share_of_uneven_groups_counts_as_fewer_trials():
    values, groups = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0], ["a", "a", "a", "b", "c", "d"]  # 36 / (9 + 3) = 3 trials
    expected = stats.binomtest(2, 3).proportion_ci(method="wilson")
    interval = share_interval(values, groups)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_values_without_an_interval_are_refused():
    with pytest.raises(ValueError, match="at least 2 groups, not of 1"):
        mean_interval([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="one row and one group for each item"):
        mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="NaN or infinite"):
        mean_interval([1.0, float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match="lie in"):
        share_interval([1.0, 1.5], ["a", "b"])
    with pytest.raises(ValueError, match="one value and one group"):
        share_interval([], [])


# comparison


def almost_true(rows):
    return [np.asarray(row["front"]) // 2 + np.asarray(row["front"].convert("L"))[..., None] // 2 for row in rows]


def test_a_comparison_from_pictures_to_summary(rows):
    batches = []

    def mirrored(batch):
        batches.append(len(batch))
        return MirroredBack()(batch)

    reader = Wardrobe("validation", 64)
    other_sides = reader.other_side_fronts
    measured = list(measure(rows, {"ours": almost_true, "mirrored": mirrored}, 3, other_sides, reader.fronts_without))
    assert batches == [3, 3, 2]
    records = [record for _, _, record in measured]
    assert json.loads(json.dumps(records)) == records
    for index, (row, fronts, record) in enumerate(measured):
        assert row["item_id"] == record["item_id"] == rows[index]["item_id"]
        assert record["group_id"] == rows[index]["group_id"]
        assert record["attributes"] == rows[index]["attributes"]
        assert np.array_equal(fronts["mirrored"], np.asarray(rows[index]["back"])[:, ::-1])
        for system, front in fronts.items():
            assert record["systems"][system] == {key: metric.of(front, rows[index]) for key, metric in METRICS.items()}
        moved = other_sides(index)
        expected = {
            thing: {
                system: side_correct(front, np.asarray(row["front"]), moved[thing]) for system, front in fronts.items()
            }
            for thing in moved
            if side_correct(fronts["ours"], np.asarray(row["front"]), moved[thing]) is not None
        }
        assert record["sides"] == expected
        strengths = {
            thing: {system: presence(front, np.asarray(row["front"]), without) for system, front in fronts.items()}
            for thing, without in reader.fronts_without(index).items()
        }
        assert record["presences"] == {thing: of for thing, of in strengths.items() if None not in of.values()} != {}

    summary = summarise(records, "ours", seed=5)
    groups = [row["group_id"] for row in rows]
    assert len(set(groups)) == 7
    assert list(summary["systems"]) == ["ours", "mirrored"]
    assert list(summary["differences"]) == ["mirrored"]
    for key, metric in METRICS.items():
        ours, theirs = ([record["systems"][name][key] for record in records] for name in ("ours", "mirrored"))
        assert summary["systems"]["ours"][key] == pytest.approx(vars(mean_interval(ours, groups, 5)))
        assert summary["systems"]["mirrored"][key] == pytest.approx(vars(mean_interval(theirs, groups, 5)))
        difference = dict(summary["differences"]["mirrored"][key])
        better = [(a < b if metric.lower_is_better else a > b) for a, b in zip(ours, theirs)]
        assert difference.pop("win_rate") == vars(share_interval(better, groups))
        assert difference == pytest.approx(vars(mean_interval(np.subtract(ours, theirs), groups, 5)))


def test_a_thing_that_every_system_puts_on_the_wrong_side_counts(rows):
    """Fronts that are those of the other side: what the first row wears on one side is wrong for both systems."""
    other_sides = Wardrobe("validation", 64).other_side_fronts
    for index, row in enumerate(rows):
        for thing, picture in other_sides(index).items():
            if side_correct(picture, np.asarray(row["front"]), picture) is None:
                continue
            wrong = dict.fromkeys(("one", "two"), lambda batch, picture=picture: [picture])
            ((_, _, record),) = measure([row], wrong, 1, lambda _, moved={thing: picture}: moved)
            assert record["sides"] == {thing: {"one": False, "two": False}}
            return
    raise AssertionError("no row wears anything on one side")


def test_equal_systems_win_half_of_the_items(rows):
    records = [record for _, _, record in measure(rows[:4], {"one": MirroredBack(), "two": MirroredBack()}, 4)]
    assert all(record["sides"] == record["presences"] == {} for record in records)
    for difference in summarise(records, "one")["differences"]["two"].values():
        assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)
        assert difference["win_rate"]["mean"] == 0.5


def test_each_metric_has_a_win_rate_of_its_own():
    values = {"ours": (0.1, 0.5, 3.0, 0.2, 0.4), "theirs": (0.2, 0.6, 3.0, 0.1, 0.5)}
    systems = {name: dict(zip(METRICS, each, strict=True)) for name, each in values.items()}
    records = [{"group_id": group, "systems": systems} for group in "abc"]
    rates = [found["win_rate"]["mean"] for found in summarise(records, "ours")["differences"]["theirs"].values()]
    assert rates == [1, 0, 0.5, 0, 1]  # of person L1, person SSIM, garment colour, head L1 and edges


def test_sides_are_counted_by_thing():
    def record(group, **sides):
        return {"group_id": group, "sides": {thing: {"ours": hit, "theirs": not hit} for thing, hit in sides.items()}}

    records = [record("a", bag=True), record("a", bag=True, hem=False), record("b", bag=False), record("c")]
    bags = summarise_sides(records, ["bag"])
    assert bags["ours"] == vars(share_interval([1, 1, 0], ["a", "a", "b"]))
    assert bags["theirs"] == vars(share_interval([0, 0, 1], ["a", "a", "b"]))
    both = summarise_sides(records, ["bag", "hem"])
    assert (both["ours"]["mean"], both["ours"]["items"], both["ours"]["groups"]) == (0.5, 4, 2)
    assert summarise_sides(records, ["hat"]) is None


def test_presences_are_averaged_by_thing():
    def record(group, **strengths):
        return {"group_id": group, "presences": {name: {"ours": of, "theirs": -of} for name, of in strengths.items()}}

    records = [record("a", zip=0.5), record("a", zip=0.7, face=1), record("b", zip=0.1), record("c")]
    zips = summarise_presences(records, ["zip"], seed=4)
    assert zips["ours"] == pytest.approx(vars(mean_interval([0.5, 0.7, 0.1], ["a", "a", "b"], 4)))
    assert zips["theirs"] == pytest.approx(vars(mean_interval([-0.5, -0.7, -0.1], ["a", "a", "b"], 4)))
    both = summarise_presences(records, ["zip", "face"])
    assert (both["ours"]["mean"], both["ours"]["items"], both["ours"]["groups"]) == (pytest.approx(0.575), 4, 2)
    assert summarise_presences(records, ["face"]) is None  # one group has no interval
    assert summarise_presences(records, ["hood"]) is None
