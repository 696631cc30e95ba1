"""The order in which items come."""

import numpy as np
import pytest

from backshan_diffusers.data import load_pairs
from backshan_diffusers.training.batches import StepSampler
from backshan_diffusers.training.order import LOT, LikenessOrder, RandomOrder, describe_by_attributes, describe_by_look


def clusters(count: int = 240, kinds: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    kind = random.integers(kinds, size=count)
    return random.standard_normal((kinds, 6))[kind] * 5 + random.standard_normal((count, 6)) * 0.1, kind


def test_every_epoch_shows_every_item_once_in_a_new_order():
    descriptors, _ = clusters(100)
    for order in (RandomOrder(100), LikenessOrder(descriptors, 4)):
        first, second = order(1), order(2)
        assert sorted(first) == sorted(second) == list(range(100))
        assert first.tolist() != second.tolist()
        assert order(1).tolist() == first.tolist()
        assert order.total == 100


def test_similar_items_come_together():
    descriptors, kind = clusters()

    def share(order: np.ndarray) -> float:
        runs = kind[order].reshape(-1, 4)
        return float((runs == runs[:, :1]).mean())

    assert share(RandomOrder(240)(0)) < 0.4
    assert share(LikenessOrder(descriptors, 4)(0)) > 0.75


def test_what_makes_no_whole_group_is_left_out_another_time_in_every_epoch():
    """Otherwise groups of this epoch or of the next would straddle two batches."""
    descriptors, _ = clusters(42)
    order = LikenessOrder(descriptors, 4)
    shown = [order(seed) for seed in range(8)]
    assert order.total == 40 and {len(set(items)) for items in shown} == {40}
    assert set(np.concatenate(shown)) == set(range(42))


def test_lots_hold_whole_groups_and_leave_nothing_out_between_them():
    descriptors, _ = clusters(LOT + 400)
    order = LikenessOrder(descriptors, 3)
    assert LOT % 3 and len(set(order(0))) == len(order(0)) == order.total == (LOT + 400) // 3 * 3


def test_of_equals_the_first_are_taken():
    """Whatever sorts them, so that an epoch is the same on every machine."""
    kind = np.arange(400) % 3
    left, expected = np.random.default_rng(5).permutation(400).tolist(), []
    while left:
        expected.append(sorted(left, key=lambda item: abs(int(kind[item]) - int(kind[left[0]])))[:4])
        left = [item for item in left if item not in expected[-1]]
    order = LikenessOrder(kind[:, None].astype(float), 4)(5).reshape(-1, 4).tolist()
    assert sorted(order) == sorted(expected)
    assert order != expected  # what is left at the end of a lot comes at any time


def test_no_group_straddles_two_batches_in_any_epoch():
    """Twenty items in batches of eight: every third batch has the end of an epoch and the beginning of the next."""
    kind = np.arange(20) // 4
    order, sampler = LikenessOrder(kind[:, None].astype(float), 4), StepSampler(0, "joint")
    shown = np.stack([sampler.indices(step, 8, order) for step in range(10)]).reshape(-1, 4)
    assert all(len(set(kind[run])) == 1 for run in shown)
    for epoch in shown.reshape(4, 20):
        assert sorted(epoch) == list(range(20))


def test_no_item_comes_twice_in_an_epoch_that_leaves_some_out():
    order, sampler = LikenessOrder(clusters(42)[0], 4), StepSampler(0, "joint")
    for epoch in range(3):
        batches = [sampler.indices(step, 4, order) for step in range(10 * epoch, 10 * epoch + 10)]
        assert len(set(np.concatenate(batches))) == 40


def test_the_more_labels_are_shared_the_more_alike():
    rows = [{"top": "polo", "bag": "none"}, {"top": "polo", "bag": "none"}, {"top": "polo", "bag": "tote"}]
    rows += [{"top": "cape", "bag": "tote"}]
    table = describe_by_attributes([{**row, "open": False} for row in rows])
    distance = np.linalg.norm(table[:, None] - table[None], axis=2)
    assert distance[0, 1] == 0 < distance[0, 2] < distance[0, 3]


def test_numbers_count_by_their_spread():
    table = describe_by_attributes([{"height": 150.0}, {"height": 170.0}, {"height": 190.0}])
    assert table[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert describe_by_attributes([{"height": 150.0}] * 3).tolist() == [[0.0]] * 3


def test_a_switch_counts_as_a_text_does():
    switches, texts = ([{"open": value} for value in values] for values in ([False, True, True], ["a", "b", "b"]))
    for rows in (switches, texts):
        assert describe_by_attributes(rows).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_a_missing_label_is_a_value_of_its_own():
    table = describe_by_attributes([{"bag": "tote"}, {}, {}])
    assert (table[1] == table[2]).all() and (table[0] != table[1]).any()


def test_the_look_is_that_of_colours_and_their_places():
    red, blue = (np.full((64, 64, 3), colour, dtype=np.uint8) for colour in ((200, 30, 30), (30, 30, 200)))
    upper = red.copy()
    upper[:32] = blue[:32]
    table = describe_by_look(np.stack([red, upper, blue, red]))
    assert table.shape == (4, 192)
    assert (table[0] == table[3]).all()
    for descriptor, lab in ((table[0], (43, 63, 45)), (table[2], (28, 58, -84))):  # in CIE's own units
        assert descriptor[:3] == pytest.approx([lab[0] * 2.55, lab[1] + 128, lab[2] + 128], abs=4)
    distance = np.linalg.norm(table - table[0], axis=1)
    assert 0 < distance[1] < distance[2]


def test_drawn_outfits_that_share_labels_come_together():
    attributes = [row["attributes"] for row in load_pairs("wardrobe", split="train", size=64, count=128)]
    labels = np.array([[repr(value) for value in row.values()] for row in attributes])

    def shared(items: np.ndarray) -> float:
        runs = labels[items].reshape(-1, 4, labels.shape[1])
        return float((runs[:, 1:] == runs[:, :1]).mean())

    by_labels, at_random = LikenessOrder(describe_by_attributes(attributes), 4)(3), RandomOrder(128)(3)
    assert shared(by_labels) > shared(at_random) + 0.1
