"""The order in which items come."""

import numpy as np
import pytest

from backshan_diffusers.data import load_pairs
from backshan_diffusers.training.order import LikenessOrder, RandomOrder, describe_by_attributes, describe_by_look


def clusters(count: int = 240, kinds: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    kind = random.integers(kinds, size=count)
    return random.standard_normal((kinds, 6))[kind] * 5 + random.standard_normal((count, 6)) * 0.1, kind


def test_every_epoch_shows_every_item_once_in_a_new_order():
    descriptors, _ = clusters(101)
    for order in (RandomOrder(101), LikenessOrder(descriptors, 4)):
        first, second = order(1), order(2)
        assert sorted(first) == sorted(second) == list(range(101))
        assert first.tolist() != second.tolist()
        assert order(1).tolist() == first.tolist()
        assert order.total == 101


def test_similar_items_come_together():
    descriptors, kind = clusters()

    def share(order: np.ndarray) -> float:
        runs = kind[order].reshape(-1, 4)
        return float((runs == runs[:, :1]).mean())

    assert share(RandomOrder(240)(0)) < 0.4
    assert share(LikenessOrder(descriptors, 4)(0)) > 0.75


def test_an_incomplete_group_comes_last():
    """Otherwise every later group would straddle two batches."""
    descriptors, _ = clusters(42)
    order = LikenessOrder(descriptors, 4)
    distances = [np.ptp(descriptors[run], axis=0).sum() for run in order(0)[:40].reshape(10, 4)]
    shifted = [np.ptp(descriptors[run], axis=0).sum() for run in order(0)[2:42].reshape(10, 4)]
    assert np.mean(distances) < np.mean(shifted)


def test_the_more_labels_are_shared_the_more_alike():
    rows = [{"top": "polo", "bag": "none"}, {"top": "polo", "bag": "none"}, {"top": "polo", "bag": "tote"}]
    rows += [{"top": "cape", "bag": "tote"}]
    table = describe_by_attributes([{**row, "open": False} for row in rows])
    distance = np.linalg.norm(table[:, None] - table[None], axis=2)
    assert distance[0, 1] == 0 < distance[0, 2] < distance[0, 3]


def test_numbers_count_by_their_spread():
    table = describe_by_attributes([{"height": 150.0}, {"height": 170.0}, {"height": 190.0}])
    assert table[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


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
