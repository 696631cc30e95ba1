"""Pairs of one's own as picture files: layouts, splits, groups, files that are the same, and what is refused."""

import logging
import os
import pickle
import re
import shutil
from collections import Counter

import numpy as np
import PIL.Image
import pytest

from backshan_diffusers.data import COLUMNS, PairsError, arrays, check_pairs, load_pairs
from backshan_diffusers.data.pairs import Skipped, UnreadablePairError
from backshan_diffusers.data.stored import SHARES, split_of
from backshan_diffusers.pictures import Letterbox, load_picture
from backshan_diffusers.training.caching import cache_pairs, read_item_ids

ORIENTATION = 274  # the EXIF tag


def noise(seed, size=(24, 32)):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def save(picture, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def make(folder, items, form="{item}_{view}.png", first_seed=0):
    """Writes a pair for each item, no two pictures alike."""
    for number, item in enumerate(items):
        for side, view in enumerate(("back", "front")):
            save(noise(2 * (first_seed + number) + side), folder / form.format(item=item, view=view))
    return folder


def train(path, size=32, **options):
    return load_pairs("folder", path=path, split="train", size=size, **options)


def refusal(path, split="train", size=32, **options):
    with pytest.raises(PairsError) as refused:
        load_pairs("folder", path=path, split=split, size=size, **options)
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def on_square(path, size=32):
    picture = load_picture(path)
    return Letterbox(picture.size, size).apply(picture)


# layouts


@pytest.mark.parametrize("form", ["{item}_{view}.png", "{view}/{item}.png"])
def test_rows_hold_the_pictures_of_the_folder_in_the_order_of_their_names(tmp_path, form):
    make(tmp_path / "train", ["b", "a_1", "c"], form)
    make(tmp_path / "validation", ["d"], form, first_seed=10)
    (tmp_path / "train" / "metadata.csv").write_text("item_id,group_id,colour,worn\na_1,g,red,\nb,g,blue,yes\n")
    rows = train(tmp_path)
    assert [row["item_id"] for row in rows] == ["a_1", "b", "c"]
    for row in rows:
        assert tuple(row) == COLUMNS
        for view in ("back", "front"):
            path = tmp_path / "train" / form.format(item=row["item_id"], view=view)
            assert row[view].mode == "RGB"
            assert np.array_equal(row[view], on_square(path))
        assert all(row[name] is None for name in COLUMNS[4:-1])
    assert [row["group_id"] for row in rows] == ["g", "g", "c"]
    assert [row["attributes"] for row in rows] == [{"colour": "red"}, {"colour": "blue", "worn": "yes"}, {}]
    (held_out,) = load_pairs("folder", path=str(tmp_path), split="validation", size=32)
    assert held_out["item_id"] == "d"


def test_back_and_front_may_be_of_different_sizes_and_kinds(tmp_path):
    save(noise(0, (40, 20)), tmp_path / "train" / "a_back.JPG")
    save(noise(1, (20, 60)), tmp_path / "train" / "a_front.webp")
    (row,) = train(tmp_path)
    assert np.array_equal(row["back"], on_square(tmp_path / "train" / "a_back.JPG"))
    assert np.array_equal(row["front"], on_square(tmp_path / "train" / "a_front.webp"))


def test_pictures_are_read_as_everywhere_in_the_package(tmp_path):
    upright = noise(0, (32, 32))
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 3
    save(upright.rotate(180), tmp_path / "train" / "a_back.png", exif=exif)
    save(PIL.Image.new("RGBA", (32, 32), (9, 9, 9, 0)), tmp_path / "train" / "a_front.png")
    (row,) = train(tmp_path)
    assert np.array_equal(row["back"], upright)
    assert (np.asarray(row["front"]) == 255).all()


def test_other_files_are_left_alone(tmp_path):
    make(tmp_path / "train", ["a"])
    save(noise(8), tmp_path / "train" / "a_side.png")
    save(noise(8), tmp_path / "train" / "._b_back.png")
    (tmp_path / "train" / "readme_back.txt").write_text("words")
    assert len(train(tmp_path)) == 1


# what a sequence of them is


def test_all_pairs_or_as_many_as_asked_for(tmp_path):
    make(tmp_path / "train", "abc")
    assert [row["item_id"] for row in train(tmp_path, count=2)] == ["a", "b"]
    for count in (0, 4, True, 1.5):
        with pytest.raises(ValueError, match=re.escape(f"from 1 to 3, not {count!r}.")):
            train(tmp_path, count=count)


def test_rows_are_made_late_and_pickle_without_their_pictures(tmp_path):
    make(tmp_path / "train", [f"{number:03d}" for number in range(50)])
    rows = train(tmp_path)
    sent = pickle.dumps(rows)
    assert len(sent) < 50 * 100
    before = np.asarray(pickle.loads(sent)[3]["back"])
    save(noise(999), tmp_path / "train" / "003_back.png")
    assert not np.array_equal(before, rows[3]["back"])


def test_the_key_is_that_of_the_files(tmp_path):
    folder = make(tmp_path / "one" / "train", "ab").parent
    keys = [train(folder).key]

    def changed():
        keys.append(train(folder).key)
        return keys[-1] != keys[-2]

    assert not changed()
    (folder / "train" / "notes.txt").write_text("words")
    assert not changed()
    (folder / "train" / "metadata.csv").write_text("item_id,colour\na,red\n")
    assert changed()
    for time in (1, 2):
        os.utime(folder / "train" / "b_front.png", ns=(time, time))
        assert changed()
    save(noise(9, (24, 31)), folder / "train" / "a_back.png")
    os.utime(folder / "train" / "a_back.png", ns=(1, 1))
    other_size = train(folder).key
    save(noise(9, (24, 33)), folder / "train" / "a_back.png")
    os.utime(folder / "train" / "a_back.png", ns=(1, 1))
    assert train(folder).key != other_size
    assert changed()
    (folder / "train" / "b_front.png").rename(folder / "train" / "b_front.PNG")
    assert changed()
    assert train(folder, size=16).key != keys[-1]
    rows = train(folder)
    assert len({rows.key, rows[:1].key, rows[1:].key, rows.select([1, 0]).key}) == 4
    shutil.copytree(folder / "train", folder / "validation")  # copies the times, too
    assert load_pairs("folder", path=folder, split="validation", size=32).key != keys[-1]
    shutil.copytree(folder, tmp_path / "two")
    assert train(tmp_path / "two").key == keys[-1]


# splits


def test_groups_are_shared_out_where_there_are_no_splits(tmp_path):
    items = [f"{number:03d}" for number in range(60)]
    make(tmp_path, items)
    (tmp_path / "metadata.csv").write_text("item_id,group_id\n" + "".join(f"{item},{item[:2]}\n" for item in items))
    parts = {split: load_pairs("folder", path=tmp_path, split=split, size=16) for split in ("train", "test")}
    ids = {split: {row["item_id"] for row in rows} for split, rows in parts.items()}
    groups = {split: {row["group_id"] for row in rows} for split, rows in parts.items()}
    assert not groups["train"] & groups["test"]
    for split in parts:
        assert ids[split] == {item for item in items if split_of(item[:2]) == split}


def test_a_group_keeps_its_split():
    draws = {"g18": "train", "g10": "validation", "g22": "test"}
    assert {group: split_of(group) for group in draws} == draws
    counts = Counter(split_of(f"group {number}") for number in range(10_000))
    assert all(counts[split] == pytest.approx(10_000 * share, abs=150) for split, share in SHARES.items())
    assert sum(SHARES.values()) == pytest.approx(1)


def test_a_split_nothing_falls_into_is_refused(tmp_path):
    make(tmp_path, ["g18"])
    assert len(train(tmp_path)) == 1
    sentence = refusal(tmp_path, "test")
    assert "no pair of" in sentence and "80% train, 10% validation, 10% test" in sentence and "only 1," in sentence


def test_unknown_splits_are_refused(tmp_path):
    make(tmp_path / "train", "ab")
    assert refusal(tmp_path, "val") == "there is no split 'val'; choose one of train, validation, test."
    assert "has no split 'test', only train: add it" in refusal(tmp_path, "test")


# files that are the same


def copy(folder, source, target):
    shutil.copy(folder / f"{source}.png", folder / f"{target}.png")


def test_a_pair_that_repeats_another_is_left_out_and_counted(tmp_path):
    folder = make(tmp_path / "train", "abc")
    for view in ("back", "front"):
        copy(folder, f"a_{view}", f"c_{view}")
    rows = train(tmp_path)
    assert [row["item_id"] for row in rows] == ["a", "b"]
    assert rows.findings.repeated == ("c",)
    assert not rows.findings.skipped
    assert "1 that repeat" in str(check_pairs(rows)) and "\nc: it repeats an earlier pair" in str(check_pairs(rows))


def test_groups_that_share_a_picture_are_one(tmp_path):
    folder = make(tmp_path / "train", "abcdef")
    copy(folder, "a_back", "e_back")  # e has the back of a, and its front on the back of c
    copy(folder, "e_front", "c_back")
    rows = train(tmp_path)
    assert {row["item_id"]: row["group_id"] for row in rows} == dict(zip("abcdef", "abadaf"))
    assert rows.findings.joined_groups == 2
    assert not rows.findings.repeated


def test_groups_that_share_a_picture_are_in_one_split(tmp_path):
    make(tmp_path, ["g18", "g22"])
    copy(tmp_path, "g18_back", "g22_back")
    assert [row["group_id"] for row in train(tmp_path)] == ["g18", "g18"]
    assert "falls into test" in refusal(tmp_path, "test")


def test_files_of_one_size_are_not_taken_for_the_same(tmp_path):
    for item in "ab":
        for view in ("back", "front"):
            save(noise(10 * ord(item) + len(view)), tmp_path / "train" / f"{item}_{view}.bmp")
    rows = train(tmp_path)
    assert [row["group_id"] for row in rows] == ["a", "b"]
    assert not rows.findings.skipped


# what is wrong with a pair


def few_of_many(folder):
    """21 pairs, so that one of them may be left out."""
    return make(folder / "train", [f"{number:02d}" for number in range(21)])


def test_a_few_incomplete_pairs_are_left_out_and_listed(tmp_path):
    folder = few_of_many(tmp_path)
    (folder / "07_front.png").unlink()
    rows = train(tmp_path)
    assert "07" not in [row["item_id"] for row in rows]
    assert rows.findings.skipped == (Skipped("07", "it has no front"),)
    assert rows[3:9].findings == rows.select([8, 2]).findings == rows.findings
    check = check_pairs(rows)
    assert len(check.usable) == 20
    assert str(check).splitlines()[1:] == ["07: it has no front"]
    (folder / "11_back.png").unlink()
    assert "2 of 21 pairs cannot be used, which is more than 5% (07: it has no front; 11: it has no back)" in refusal(
        tmp_path
    )


def test_pairs_without_a_side_and_unreadable_ones_are_counted_together(tmp_path):
    folder = make(tmp_path / "train", [f"{number:02d}" for number in range(40)])
    (folder / "07_front.png").unlink()
    (folder / "11_back.png").write_bytes(b"broken")
    assert len(check_pairs(train(tmp_path)).usable) == 38
    (folder / "08_front.png").unlink()
    rows = train(tmp_path)
    with pytest.raises(
        PairsError, match=r"^3 of 40 pairs cannot be used, which is more than 5% \(07: it has no front"
    ):
        check_pairs(rows)
    with pytest.raises(PairsError, match=r"^1 of 10 pairs cannot be used"):
        check_pairs(rows.select(range(2, 12)))
    # those left out before are few of the split, whatever part of it is looked at
    assert len(check_pairs(rows.select(range(20, 30))).usable) == 10


def test_a_pair_that_is_left_out_joins_no_groups(tmp_path):
    """Such as a stand-in for a missing picture."""
    folder = few_of_many(tmp_path)
    for view in ("back", "front"):
        copy(folder, "01_back", f"07_{view}")
    rows = train(tmp_path)
    assert rows.findings.skipped == (Skipped("07", "its back and its front are the same file"),)
    assert rows.findings.joined_groups == 0


def test_one_of_twenty_is_a_few(tmp_path):
    folder = make(tmp_path / "train", [f"{number:02d}" for number in range(20)])
    (folder / "07_front.png").unlink()
    assert len(train(tmp_path)) == 19


def test_every_way_to_be_incomplete_is_named(tmp_path):
    folder = make(tmp_path / "train", ["a", "b"], first_seed=50)
    copy(folder, "a_back", "a_front")
    save(noise(3), folder / "b_back.webp")
    (folder / "metadata.csv").write_text("item_id\nc\n")
    sentence = refusal(tmp_path)
    assert "a: its back and its front are the same file" in sentence
    assert "b: it has more than one back, b_back.png and b_back.webp" in sentence
    assert "c: it is in metadata.csv and has no pictures)" in sentence
    save(noise(4), folder / "d_back.png")
    assert "4 of 4 pairs" in refusal(tmp_path) and "; ...)" in refusal(tmp_path)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "not a picture": lambda path: path.write_text("<html>not found</html>"),
    "too small": lambda path: noise(0, (15, 40)).save(path),
    "too long": lambda path: noise(0, (16, 160)).save(path),
    "not a file": lambda path: path.unlink() or path.symlink_to("nowhere.png"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_picture_that_cannot_be_read_is_found_when_it_is_read(tmp_path, damage):
    path = few_of_many(tmp_path) / "07_back.png"
    DAMAGES[damage](path)
    rows = train(tmp_path)
    assert len(rows) == 21
    with pytest.raises(UnreadablePairError, match=f"^the pair 07 cannot be used: its back cannot be read, .*{damage}"):
        rows[7]
    check = check_pairs(rows)
    assert [row["item_id"] for row in check.usable] == [f"{number:02d}" for number in range(21) if number != 7]
    (skipped,) = check.findings.skipped
    assert skipped.item_id == "07" and damage in skipped.reason and str(path) in skipped.reason


def test_a_check_stops_where_too_much_cannot_be_read(tmp_path):
    folder = few_of_many(tmp_path)
    for number in (3, 4):
        (folder / f"{number:02d}_front.png").write_bytes(b"")
    with pytest.raises(PairsError, match="2 of 21 pairs cannot be used, which is more than 5%"):
        check_pairs(train(tmp_path))


def test_a_check_of_sound_pairs_gives_them_as_they_are(tmp_path):
    make(tmp_path / "train", "ab")
    rows = train(tmp_path)
    check = check_pairs(rows)
    assert check.usable is rows
    assert "\n" not in str(check)
    assert len(check_pairs(rows[:0], processes=2).usable) == 0


def test_training_leaves_out_what_cannot_be_read_in_every_process(tmp_path, caplog):
    """Chunks without a usable row, rows left out at both ends of a chunk: groups stay with their pictures."""
    items = [f"{number:03d}" for number in range(3 * arrays.CHUNK + 5)]
    folder = make(tmp_path / "train", items, "{view}/{item}.png")
    (folder / "metadata.csv").write_text(
        "item_id,group_id\n" + "".join(f"{item},{int(item) // 3}\n" for item in items)
    )
    bad = [0, arrays.CHUNK - 1, arrays.CHUNK, 2 * arrays.CHUNK + 3, len(items) - 1]
    for number in bad:
        (folder / "front" / f"{items[number]}.png").write_bytes(b"")
    rows = train(tmp_path, size=16)
    before = os.times()
    with caplog.at_level(logging.INFO):
        cached = cache_pairs(rows, tmp_path / "cache", workers=2)
    assert os.times().children_user > before.children_user
    good = [number for number in range(len(items)) if number not in bad]
    for array, view in ((cached.backs, "back"), (cached.fronts, "front")):
        assert array.shape == (len(good), 16, 16, 3)
        for position, number in enumerate(good):
            assert np.array_equal(array[position], on_square(folder / view / f"{items[number]}.png", 16))
    assert len(set(cached.groups)) == len({number // 3 for number in good})
    groups = [number // 3 for number in good]
    assert ((cached.groups[:, None] == cached.groups) == (np.array(groups)[:, None] == groups)).all()
    assert read_item_ids(cached, tmp_path / "cache") == [items[number] for number in good]
    (report,) = (tmp_path / "cache").glob("*-check.txt")
    lines = report.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == [items[number] for number in bad]
    assert f"{len(good)} pairs can be used; left out are 5 that cannot" in lines[0]
    (said,) = [each for each in caplog.records if "can be used" in each.getMessage()]
    assert said.getMessage() == f"{lines[0]} They are listed in {report}." and said.levelname == "WARNING"
    assert [row["item_id"] for row in check_pairs(rows).usable] == [items[number] for number in good]
    alone = cache_pairs(rows, tmp_path / "other", workers=1)
    assert np.array_equal(alone.fronts, cached.fronts) and np.array_equal(alone.groups, cached.groups)


def test_training_lists_what_was_left_out_when_the_folder_was_opened_too(tmp_path):
    folder = few_of_many(tmp_path)
    (folder / "07_front.png").unlink()
    cache_pairs(train(tmp_path), tmp_path / "cache", workers=1)
    (report,) = (tmp_path / "cache").glob("*-check.txt")
    assert report.read_text().splitlines()[1:] == ["07: it has no front"]


def test_a_chunk_without_a_usable_row_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 1)
    folder = few_of_many(tmp_path)
    (folder / "07_front.png").write_bytes(b"")
    assert len(cache_pairs(train(tmp_path), tmp_path / "cache", workers=1).groups) == 20


def test_training_stops_where_too_much_cannot_be_read_and_keeps_nothing(tmp_path):
    folder = few_of_many(tmp_path)
    for number in (3, 4):
        (folder / f"{number:02d}_front.png").write_bytes(b"")
    with pytest.raises(PairsError, match="2 of 21 pairs cannot be used"):
        cache_pairs(train(tmp_path), tmp_path / "cache", workers=1)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_one_pair_is_enough_to_be_cached(tmp_path):
    make(tmp_path / "train", "a")
    cached = cache_pairs(train(tmp_path), tmp_path / "cache", workers=4)
    assert cached.backs.shape == (1, 32, 32, 3) and cached.groups.tolist() == [0]


# what is refused


def test_a_path_is_needed_where_pairs_lie_and_nowhere_else(tmp_path):
    assert refusal(None) == "folder needs a path: give the folder where the pairs lie."
    with pytest.raises(ValueError, match="wardrobe is drawn and lies nowhere: leave out the path 'here'"):
        load_pairs("wardrobe", split="train", size=64, path="here")
    assert len(load_pairs("wardrobe", split="train", size=64)) == 10_000_000


def test_a_wrong_path_is_refused(tmp_path):
    (tmp_path / "file.zip").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file.zip"):
        assert refusal(path) == f"{path} is no folder and no parquet file: give the folder where the pairs lie."


def test_a_folder_without_pairs_is_refused(tmp_path):
    save(noise(1), tmp_path / "photo.png")
    for folder, named in ((".", tmp_path), ("train", tmp_path / "train"), ("train/back", tmp_path / "train")):
        (tmp_path / folder).mkdir(exist_ok=True)
        assert f"{named} holds no pairs: put ITEM_back.jpg and ITEM_front.jpg there, or" in refusal(tmp_path)


@pytest.mark.parametrize("size", [15, 0, 32.0, True])
def test_a_bad_size_is_refused(tmp_path, size):
    make(tmp_path / "train", "a")
    assert f"size must be a whole number of at least 16 px, not {size!r}" in refusal(tmp_path, size=size)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,colour\na,red\n", "has the columns name, colour: name each of them once"),
        ("", "has the columns : name each of them once"),
        ("item_id,colour,colour\na,red,red\n", "has the columns item_id, colour, colour: name each"),
        ("item_id,colour\na,red\na,blue\n", "has more than one line for the item_id a"),
        ("item_id,colour\n,red\n", "line 2 of"),
        ("item_id,colour\na,red,blue\n", "has more fields than the first line"),
        ("item_id,colour\na,\xff\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path, text, said):
    folder = make(tmp_path / "train", "a")
    (folder / "metadata.csv").write_bytes(text.encode("latin-1"))
    assert said in refusal(tmp_path)


def test_an_empty_group_is_the_items_own(tmp_path):
    folder = make(tmp_path / "train", "ab")
    (folder / "metadata.csv").write_text("item_id,group_id\na,\nb,\n")
    assert [row["group_id"] for row in train(tmp_path)] == ["a", "b"]


def test_metadata_may_come_from_a_spreadsheet(tmp_path):
    folder = make(tmp_path / "train", "a")
    (folder / "metadata.csv").write_bytes('item_id,colour\r\na,"red, blue"\r\n'.encode("utf-8-sig"))
    (row,) = train(tmp_path)
    assert row["attributes"] == {"colour": "red, blue"}
