"""Pairs in tables, and the sources made of them. What needs data that is not shipped says so and is skipped."""

import os
import pickle
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from backshan_diffusers.data import COLUMNS, PairsError, check_pairs, load_pairs, stored, tables
from backshan_diffusers.data.pairs import Skipped, UnreadablePairError
from backshan_diffusers.data.stored import split_of
from backshan_diffusers.pictures import Letterbox, load_picture
from backshan_diffusers.training.caching import cache_pairs

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("datasets_cache")

DATA = "BACKSHAN_DATA"
"""Name of the variable that says where the data sets lie that are not shipped, each in a folder of its name."""


def noise(seed, mode="RGB", size=(24, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def encoded(picture):
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def columns(count, first_seed=0):
    """`count` pairs, no two pictures alike, with their bytes as arrow knows pictures."""
    pictures = [encoded(noise(first_seed + seed)) for seed in range(2 * count)]
    wrapped = [{"bytes": each, "path": None} for each in pictures]
    return {"item_id": [f"i{n}" for n in range(count)], "back": wrapped[::2], "front": wrapped[1::2]}


def table(values):
    return datasets.Dataset.from_dict(values)


def write(values, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table(values).to_parquet(path)
    return path


def opened(path, split="train", source="folder", size=32, **options):
    return load_pairs(source, path=path, split=split, size=size, **options)


def refusal(path, split="train", source="folder"):
    with pytest.raises(PairsError) as refused:
        opened(path, split, source)
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def on_square(file, size=32):
    picture = load_picture(file)
    return Letterbox(picture.size, size).apply(picture)


# forms


def test_rows_hold_the_pictures_and_labels_of_the_table(tmp_path):
    values = columns(3) | {
        "group_id": [7, 7, None],
        "worn": [True, None, False],
        "price": [1.5, 2.5, 3.5],
        "colour": ["red", "blue", None],
        "sizes": [["S"], [], ["M", "L"]],
        "mask": columns(3)["back"],
        "place": [[[1.0, 2.0]]] * 3,
    }
    place = datasets.Array2D((1, 2), "float32")
    table(values).cast_column("place", place).to_parquet(tmp_path / "train.parquet")
    rows = opened(tmp_path)
    assert [row["item_id"] for row in rows] == ["i0", "i1", "i2"]
    assert [row["group_id"] for row in rows] == ["7", "7", "i2"]
    for number, row in enumerate(rows):
        assert tuple(row) == COLUMNS
        for view in ("back", "front"):
            assert np.array_equal(row[view], on_square(values[view][number]["bytes"]))
        assert all(row[name] is None for name in COLUMNS[4:-1])
    assert [row["attributes"] for row in rows] == [
        {"worn": True, "price": 1.5, "colour": "red"},
        {"price": 2.5, "colour": "blue"},
        {"worn": False, "price": 3.5},
    ]


@pytest.mark.parametrize(("mask", "fits"), [((20, 40), True), ((7, 13), True), ((40, 20), False), ((32, 32), False)])
def test_a_mask_has_the_shape_of_its_picture(tmp_path, mask, fits):
    picture = {"bytes": encoded(noise(1).resize((48, 96))), "path": None}
    covered = {"bytes": encoded(PIL.Image.new("L", mask, 255)), "path": None}
    values = {"item_id": ["a"], "back": columns(1)["back"], "front": [picture], "front_face": [covered]}
    table(values).cast_column("front_face", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    rows = opened(tmp_path)
    if fits:
        columns_inside = np.asarray(rows[0]["front_face"]).mean(axis=0) == 255
        assert abs(int(columns_inside.sum()) - 16) <= 1
    else:
        words = f"its front_face has another shape ({mask[0]} x {mask[1]} px) than its picture (48 x 96 px)."
        with pytest.raises(PairsError, match=re.escape(words)):
            rows[0]


@pytest.mark.parametrize(
    "name",
    [
        "train.parquet",
        "train-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "train/0.parquet",
        "a [b] * ?/train.parquet",
    ],
)
def test_parquet_files_of_a_split(tmp_path, name):
    write(columns(2), tmp_path / name)
    path = tmp_path / name.partition("/")[0] if "*" in name else tmp_path
    assert [row["item_id"] for row in opened(path)] == ["i0", "i1"]
    assert "has no split 'test', only train: add it" in refusal(path, "test")


def test_no_file_is_much_larger_than_the_limit(tmp_path, monkeypatch):
    pairs = load_pairs("wardrobe", split="train", size=64, count=12)
    for folder, files in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        tables.write_tables(pairs, "train", tmp_path / folder)
        written = sorted(map(str, (tmp_path / folder).glob("*.parquet")))
        assert len(written) == files
        monkeypatch.setattr(tables, "TABLE_BYTES", datasets.Dataset.from_parquet(written).data.nbytes / 1.4)


def test_several_files_of_a_split_are_read_in_the_order_of_their_names(tmp_path):
    first, second = columns(2), columns(2, first_seed=10) | {"item_id": ["i8", "i9"]}
    write(second, tmp_path / "train-00001-of-00002.parquet")
    write(first, tmp_path / "train-00000-of-00002.parquet")
    write(columns(1, first_seed=20), tmp_path / "validation.parquet")
    assert [row["item_id"] for row in opened(tmp_path)] == ["i0", "i1", "i8", "i9"]
    assert len(opened(tmp_path, "validation")) == 1


def test_saved_datasets(tmp_path):
    table(columns(2)).save_to_disk(tmp_path / "one")
    table(columns(2)).cast_column("back", datasets.Image()).save_to_disk(tmp_path / "decoding")
    parts = {"train": table(columns(2)), "validation": table(columns(1, first_seed=10))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "several")
    expected = on_square(columns(2)["back"][0]["bytes"])
    for split in ("train", "validation", "test"):
        for name in ("one", "decoding"):
            if any(split_of(item) == split for item in ("i0", "i1")):
                ids = [row["item_id"] for row in opened(tmp_path / name, split)]
                assert ids == [item for item in ("i0", "i1") if split_of(item) == split]
    assert np.array_equal(opened(tmp_path / "several")[0]["back"], expected)
    assert len(opened(tmp_path / "several", "validation")) == 1
    assert "has no split 'test', only train, validation" in refusal(tmp_path / "several", "test")


@pytest.mark.parametrize("name", ["pairs.parquet", "folder/pairs.parquet"])
def test_groups_are_shared_out_where_a_table_is_not_split(tmp_path, name):
    path = write(columns(40), tmp_path / name)
    ids = {
        split: [row["item_id"] for row in opened(path if "/" not in name else path.parent, split, size=16)]
        for split in ("train", "validation", "test")
    }
    assert all(ids[split] == [f"i{n}" for n in range(40) if split_of(f"i{n}") == split] for split in ids)


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_pictures_may_be_bytes_or_files(tmp_path, kind):
    pictures = [noise(seed) for seed in range(4)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    values = {"back": [encoded(pictures[0]), encoded(pictures[2])], "front": ["1.png", str(tmp_path / "3.png")]}
    feature = datasets.Value(kind)
    table(values).cast_column("back", feature).to_parquet(tmp_path / "train.parquet")
    rows = opened(tmp_path)
    assert [row["item_id"] for row in rows] == ["0000000", "0000001"]
    for number, row in enumerate(rows):
        for side, view in enumerate(("back", "front")):
            assert np.array_equal(row[view], on_square(pictures[2 * number + side]))


def with_mask(mask: bytes):
    """A pair with one mask, in the columns of a table."""
    values = columns(1) | {"front_face": [{"bytes": mask, "path": None}]}
    return table(values).cast_column("front_face", datasets.Image(decode=False))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_masks_may_be_pictures_of_every_kind(tmp_path, mode):
    mask = PIL.Image.new("L", (24, 32))
    mask.paste(255, (3, 4, 15, 20))
    with_mask(encoded(mask.convert(mode))).to_parquet(tmp_path / "train.parquet")
    row = opened(tmp_path)[0]
    assert row["front_face"].mode == "L"
    assert np.array_equal(row["front_face"], Letterbox((24, 32), 32).apply_to_mask(mask))
    assert all(row[name] is None for name in COLUMNS[4:-1] if name != "front_face")


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    with_mask(b"no picture").to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UnreadablePairError, match="^the pair i0 cannot be used: its front_face cannot be read.$"):
        opened(tmp_path)[0]


# files that change, processes


def test_the_key_is_that_of_the_files(tmp_path):
    write(columns(2), tmp_path / "train.parquet")
    write(columns(2), tmp_path / "validation.parquet")
    before = opened(tmp_path).key
    assert opened(tmp_path).key == before
    assert opened(tmp_path, "validation").key != before
    write(columns(2, first_seed=10), tmp_path / "train.parquet")
    assert opened(tmp_path).key != before
    assert np.array_equal(opened(tmp_path)[0]["back"], on_square(columns(1, first_seed=10)["back"][0]["bytes"]))
    table(columns(2)).save_to_disk(tmp_path / "saved" / "train")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    before = opened(tmp_path / "saved").key
    table(columns(2, first_seed=10)).save_to_disk(tmp_path / "saved" / "train")
    assert opened(tmp_path / "saved").key != before


def test_the_key_is_that_of_the_way_of_reading(tmp_path, monkeypatch):
    write(characters(), tmp_path / "train.parquet")
    keys = [opened(tmp_path, source=source).key for source in ("folder", "lpc")]
    monkeypatch.setattr(stored, "READING", stored.READING + 1)
    assert len({*keys, opened(tmp_path).key}) == 3


def test_rows_pickle_without_their_pictures(tmp_path):
    write(columns(60), tmp_path / "train.parquet")
    rows = opened(tmp_path)
    rows[0]  # what a row has opened stays here
    sent = pickle.dumps(rows)
    assert len(sent) < 15_000
    assert np.array_equal(pickle.loads(sent)[3]["back"], rows[3]["back"])


# what is wrong with a pair


def test_pairs_of_a_table_that_cannot_be_used_are_left_out(tmp_path):
    values = columns(60)
    values["front"][5] = None
    values["front"][6] = {"bytes": b"", "path": None}
    values["back"][7], values["front"][7] = values["back"][8], values["front"][8]
    values["back"][9] = values["back"][10]
    write(values, tmp_path / "train.parquet")
    rows = opened(tmp_path)
    assert rows.findings.skipped == (Skipped("i5", "it has no front"),)
    assert rows.findings.repeated == ("i8",)
    assert rows.findings.joined_groups == 2
    with pytest.raises(
        UnreadablePairError, match="the pair i6 cannot be used: its front cannot be read, the file is "
    ):
        rows[5]
    check = check_pairs(rows)
    assert len(check.usable) == 57
    groups = {row["item_id"]: row["group_id"] for row in check.usable}
    assert groups["i9"] == groups["i10"] == "i10"
    cached = cache_pairs(rows, tmp_path / "cache", workers=1)
    assert np.array_equal(cached.backs[5], on_square(values["back"][7]["bytes"]))


def test_a_few_pairs_that_cannot_be_read_are_not_written_and_more_are_refused(tmp_path):
    values = columns(41)
    written = tmp_path / "written"
    written.mkdir()
    for number in (0, 6):
        values["front"][number] = {"bytes": b"", "path": None}
    write(values, tmp_path / "train.parquet")
    assert tables.write_tables(opened(tmp_path), "train", written) == (39, 39)
    assert [row["item_id"] for row in opened(written)] == [f"i{n}" for n in range(41) if n not in (0, 6)]
    with pytest.raises(PairsError, match="2 of 20 pairs cannot be used, which is more than 5%"):
        tables.write_tables(opened(tmp_path)[:20], "validation", written)
    assert [path.name for path in written.iterdir()] == ["train-00000-of-00001.parquet"]


# what is refused


def test_a_table_without_the_columns_is_refused(tmp_path):
    values = columns(2)
    write({"item_id": values["item_id"], "image": values["back"]}, tmp_path / "train.parquet")
    assert refusal(tmp_path) == f"{tmp_path} has the columns item_id, image: it also needs back and front."


@pytest.mark.parametrize("value", [3, [1, 2]])
def test_columns_without_pictures_are_refused(tmp_path, value):
    write(columns(2) | {"front": [value, value]}, tmp_path / "train.parquet")
    assert f"the column front of {tmp_path} holds " in refusal(tmp_path)


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    path = write(columns(2), tmp_path / "one" / "train.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert "one holds no rows that can be read as parquet (" in refusal(path.parent)
    table(columns(2)).save_to_disk(tmp_path / "two")
    next((tmp_path / "two").glob("*.arrow")).write_bytes(b"nothing")
    assert "two holds no rows that can be read as a dataset (" in refusal(tmp_path / "two")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "dataset_dict.json").write_text("{")
    assert "three holds no rows that can be read as a dataset (" in refusal(tmp_path / "three")


def test_an_id_that_is_there_twice_is_refused(tmp_path):
    write(columns(3) | {"item_id": ["a", "b", "b"]}, tmp_path / "train.parquet")
    assert "has 2 rows with the item_id b: give each row one of its own." in refusal(tmp_path)


def test_files_of_which_only_some_name_a_split_are_refused(tmp_path):
    write(columns(1), tmp_path / "train.parquet")
    write(columns(1), tmp_path / "trainers.parquet")
    assert "are named after a split and some are not" in refusal(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    empty = table(columns(1)).select([])
    datasets.DatasetDict({"train": empty}).save_to_disk(tmp_path / "saved")
    assert "train holds no rows that can be read as a dataset (" in refusal(tmp_path / "saved")
    empty.to_parquet(tmp_path / "train.parquet")
    assert "holds no rows that can be read as parquet" in refusal(tmp_path)


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    write(columns(1), tmp_path / "train.parquet")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "are read by the library datasets: install 'backshan_diffusers[train]'." in refusal(tmp_path)


# lpc and valid

LAYERS = [
    ["body/bodies/male/amber.png", "feet/shoes/male/rose.png", "torso/clothes/a.png", "torso/waist/b.png"],
    ["body/bodies/female/olive.png", "feet/shoes/male/rose.png", "torso/clothes/a.png", "torso/waist/b.png"],
    ["body/bodies/male/amber.png", "feet/shoes/male/blue.png", "hair/mop/male/red.png"],
]


def characters():
    """Three pairs as in `lpc`; the opaque square is where its number says."""
    values = columns(3) | {"sex": ["male", "female", "male"], "layers": LAYERS}
    for number in range(3):
        for view in ("back", "front"):
            picture = noise(number + 40 * (view == "back"), "RGBA", (32, 64))
            opacity = np.zeros((64, 32), np.uint8)
            opacity[8 * number : 8 * number + 8, 16:24] = 255
            picture.putalpha(PIL.Image.fromarray(opacity))
            values[view][number] = {"bytes": encoded(picture), "path": None}
    return values


def test_characters_have_person_masks_groups_and_layers(tmp_path):
    write(characters(), tmp_path / "train.parquet")
    rows = list(opened(tmp_path, source="lpc", size=64))
    for number, row in enumerate(rows):
        for view in ("back", "front"):
            mask = np.asarray(row[f"{view}_person"])
            assert row[f"{view}_person"].mode == "L"
            expected = np.zeros((64, 64), np.uint8)  # the picture lies in the middle of the square
            expected[8 * number : 8 * number + 8, 32:40] = 255
            assert np.array_equal(mask, expected)
            assert (np.asarray(row[view])[mask == 0] == 255).all()
        assert all(row[name] is None for name in COLUMNS[6:-1])
    assert rows[0]["group_id"] == rows[1]["group_id"] != rows[2]["group_id"]
    assert rows[0]["attributes"] == {
        "sex": "male",
        "body": "bodies/male/amber",
        "feet": "shoes/male/rose",
        "torso": "clothes/a, waist/b",
    }


def test_sources_know_their_columns(tmp_path):
    write(columns(2), tmp_path / "train.parquet")
    assert "it also needs sex and layers." in refusal(tmp_path, source="lpc")
    assert "it also needs group_id and person and gender and outfit_class." in refusal(tmp_path, source="valid")
    (tmp_path / "train.parquet").unlink()
    for source in ("lpc", "valid"):
        assert "holds no parquet files and no saved dataset: give the folder with them." in refusal(
            tmp_path, source=source
        )


def data(name):
    folder = Path(os.environ.get(DATA, "")) / name
    if DATA not in os.environ or not (folder / "train.parquet").exists():
        pytest.skip(f"needs the data set {name}: give the folder in which {name}/train.parquet lies as {DATA}")
    return folder


def test_lpc_as_it_is():
    path = data("lpc")
    rows = opened(path, source="lpc", size=64)
    assert (len(rows), len(opened(path, "validation", "lpc", 64))) == (8000, 400)
    assert len({row["group_id"] for row in rows[:300]}) > 290
    row = rows[0]
    mask = np.asarray(row["front_person"])
    assert set(np.unique(mask)) <= {0, 255} and 0.1 < (mask > 0).mean() < 0.5
    assert (np.asarray(row["front"])[mask == 0] == 255).all()
    assert row["attributes"]["hair"] == "ponytail2/male/violet"
    mirrored = np.asarray(row["back_person"])[:, ::-1]
    assert (mirrored == mask).mean() > 0.9


def test_valid_as_it_is():
    path = data("valid")
    rows = opened(path, source="valid", size=256)
    assert (len(rows), len(opened(path, "validation", "valid", 256))) == (2010, 152)
    row = rows[0]
    assert row["back"].size == (256, 256)
    assert row["attributes"] == {"person": "MENA_M_1", "gender": "male", "outfit_class": "Casual"}
    assert row["group_id"] == "MENA_M_1_Casual-c16"
    assert rows.findings.joined_groups == 0 and not rows.findings.repeated
    assert np.array_equal(opened(path, "train", "folder", 256)[0]["back"], row["back"])
