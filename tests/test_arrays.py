"""Pairs read in chunks, in this process and in others."""

import numpy as np
import pytest

from backshan_diffusers.data import arrays, load_pairs
from backshan_diffusers.data.arrays import read_arrays, read_chunks


@pytest.mark.parametrize("processes", [1, 2])
def test_every_pair_is_read_in_order_and_counted(processes, monkeypatch, capsys):
    monkeypatch.setattr(arrays, "CHUNK", 3)
    rows = load_pairs("wardrobe", split="validation", size=64, count=8)
    chunks = list(read_chunks(read_arrays, rows, processes, "pairs"))
    assert [len(groups) for _, _, groups, _ in chunks] == [3, 3, 2]
    backs, fronts, groups, labels = zip(*chunks, strict=True)
    for view, read in (("back", backs), ("front", fronts)):
        assert np.array_equal(np.concatenate(read), [np.asarray(row[view]) for row in rows])
    assert [each for chunk in groups for each in chunk] == [row["group_id"] for row in rows]
    expected = [{"item_id": row["item_id"], "attributes": row["attributes"]} for row in rows]
    assert [each for chunk in labels for each in chunk] == expected
    bar = capsys.readouterr().err.split("\r")[-1]
    assert " 8/8 " in bar
    assert bar.rstrip().endswith(" pairs/s]") or bar.rstrip().endswith("s/ pairs]")
