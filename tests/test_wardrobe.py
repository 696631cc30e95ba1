"""The drawn pairs: the recorded bytes, the same outfit from both sides, left and right where they belong."""

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFilter
from wardrobe_parts import (
    GOLDEN_PARTS,
    GREEN,
    HAIR_STYLES,
    Worn,
    changed,
    dressed,
    exchanged,
    parts,
    plain_scene,
    posed_scenes,
    recorded_parts,
)

from backshan_diffusers.data import COLUMNS, Pairs, load_pairs, wardrobe
from backshan_diffusers.data.wardrobe import (
    DRAWING,
    HAIR_SIDE,
    LABELS,
    OUTFIT_SIDES,
    RUN,
    SEEDS_PER_SPLIT,
    SPLITS,
    Wardrobe,
    describe,
)
from backshan_diffusers.data.wardrobe.accessories import BAGS as DRAWN_BAGS
from backshan_diffusers.data.wardrobe.accessories import paint_bag, paint_watch
from backshan_diffusers.data.wardrobe.body import paint_arm
from backshan_diffusers.data.wardrobe.canvas import FACE, GARMENT, HEAD, PERSON, Canvas
from backshan_diffusers.data.wardrobe.fabric import PATTERNS, Cloth
from backshan_diffusers.data.wardrobe.face import BEARDS, MOUTHS
from backshan_diffusers.data.wardrobe.figure import SOLE, Figure
from backshan_diffusers.data.wardrobe.hair import KNOTS, TAILS
from backshan_diffusers.data.wardrobe.hair import SIDED as SIDED_HAIR
from backshan_diffusers.data.wardrobe.outfit import (
    BACKDROPS,
    BAGS,
    BOTTOMS,
    SHOES,
    TOPS,
)
from backshan_diffusers.data.wardrobe.painter import paint_pair
from backshan_diffusers.data.wardrobe.tops import CLOSURES, COLLARS, PRINTS, paint_sleeve, paint_top
from backshan_diffusers.data.wardrobe.view import View

PICTURES = [name for name in COLUMNS if name not in ("item_id", "group_id", "attributes")]
MASKS = [name for name in PICTURES if name not in ("back", "front")]

# SHA-256 of all pictures and masks of a row, for each version of the drawing. They change only if the drawing does:
# then models trained on the old pictures no longer match, and DRAWING is raised so that no cache of them is used.
GOLDEN = {
    3: {
        ("train", 64, 0): "dd8fa91606a0dd4bc5b5d69491cfcdb9c3497deea0f66a232c6020fce629a384",
        ("train", 128, 0): "402162a723b0a79e54ee516652d25447762e8dfb2c1e25c2c7572a95a2242c90",
        ("validation", 64, 7): "82297ad5356ac2650db0b5c8be04df48b45f192f29a6bcdd39d287912759109a",
        ("validation", 128, 7): "2bb73994aef099fc788253014350f22fc5b5749b3d18356bfc21b1beb280331c",
        ("test", 128, 13): "0296188350ad02cd70d10ea4da63bc7ec0a634f67f5cba31951bb6d8d3ccccc2",
        ("test", 160, 5): "333f0e086f9a33deee61bd859eb48d8175f045fe83d587e96f218b22e7d02c48",
        ("test", 300, 2): "6656db441c00ea6a8023262aab34fd3bbdf381fe79894a58988acafe83bc03a9",
    }
}[DRAWING]

# SHA-256 of the labels of the first forty rows of each split, as JSON. When they change on purpose LABELS is raised.
GOLDEN_LABELS = {2: "4f2b02de616d13bfbd4c395acfe52abdc088cbc87f524d7caf0c924e8f383535"}[LABELS]

# SHA-256 of the outfits, people and scenes of the first two hundred rows of each split. They change with the drawing.
GOLDEN_DRAWS = {3: "a100f3349029234a092b4f921547772aac2300d371563086bd880deb6b338286"}[DRAWING]


def digest(row: dict) -> str:
    """SHA-256 over the bytes of a row's pictures and masks."""
    total = hashlib.sha256()
    for name in PICTURES:
        total.update(row[name].tobytes())
    return total.hexdigest()


def array(picture) -> np.ndarray:
    return np.asarray(picture).astype(np.int32)


def green_side(picture: np.ndarray) -> float:
    """Mean x of the green pixels, from -1 (the picture's left edge) to 1."""
    red, green, blue = (picture[:, :, channel].astype(int) for channel in range(3))
    columns = np.nonzero((green > red + 40) & (green > blue + 40))[1]
    assert len(columns) >= 4, "nothing green was drawn"
    return columns.mean() / picture.shape[1] * 2 - 1


def lopsided_side(canvas) -> int:
    """The side of the picture, -1 or 1, on which there is more of a head below its crown than on the other."""
    head = canvas.masks()[HEAD].astype(int)
    columns = np.nonzero((head - head[:, ::-1])[14:] > 127)[1]
    assert len(columns) > 5
    return np.sign(columns.mean() - 63.5)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks."""
    first, second = first > 127, second > 127
    return (first & second).sum() / (first | second).sum()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(load_pairs("wardrobe", split="validation", size=128, count=32))


# The sequence


def test_a_row_has_the_columns_of_the_schema(rows):
    row = rows[0]
    assert tuple(row) == COLUMNS
    assert all(row[name].mode == ("RGB" if name in ("back", "front") else "L") for name in PICTURES)
    assert all(row[name].size == (128, 128) for name in PICTURES)
    assert all(isinstance(value, str | int | float | bool) for value in row["attributes"].values())


def test_pairs_behave_like_a_sequence():
    pairs = load_pairs("wardrobe", split="train", size=64, count=10)
    assert len(pairs) == 10
    assert pairs.column_names == list(COLUMNS)
    names = [row["item_id"] for row in pairs]
    assert len(set(names)) == 10
    assert pairs[-1]["item_id"] == names[9]
    assert [row["item_id"] for row in pairs[2:5]] == names[2:5]
    assert [row["item_id"] for row in pairs[2:9].select([3, 0, -1])] == [names[5], names[2], names[8]]
    assert isinstance(pairs[2:5], Pairs)
    with pytest.raises(IndexError):
        pairs[10]


def test_a_column_has_the_values_of_its_rows():
    pairs = load_pairs("wardrobe", split="train", size=64, count=5)
    names, backs = pairs["item_id"], pairs["back"]
    assert len(names) == 5 and list(names) == [row["item_id"] for row in pairs]
    assert names[-1] == pairs[-1]["item_id"] and list(names[1:3]) == [pairs[1]["item_id"], pairs[2]["item_id"]]
    assert backs[2].tobytes() == pairs[2]["back"].tobytes()
    assert repr(names).startswith("Column('item_id' of Pairs(")
    with pytest.raises(KeyError, match="pairs have no column 'side': choose from item_id, group_id, back, front"):
        pairs["side"]


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    short = load_pairs("wardrobe", split="train", size=64, count=2)
    long = load_pairs("wardrobe", split="train", size=64, count=SEEDS_PER_SPLIT)
    assert [digest(row) for row in short] == [digest(row) for row in long[:2]]


def test_pairs_pickle_small():
    pairs = load_pairs("wardrobe", split="test", size=64, count=1_000_000)
    sent = pickle.dumps(pairs)
    assert len(sent) < 1000
    assert digest(pickle.loads(sent)[123_456]) == digest(pairs[123_456])


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "catalogue"},
        {"split": "training"},
        {"size": 63},
        {"size": 1025},
        {"size": 128.0},
        {"size": True},
        {"count": 0},
        {"count": -3},
        {"count": SEEDS_PER_SPLIT + 1},
        {"count": 2.5},
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(changes):
    arguments = {"source": "wardrobe", "split": "train", "size": 64, "count": 1, **changes}
    with pytest.raises(ValueError) as refusal:
        load_pairs(arguments.pop("source"), **arguments)
    sentence = str(refusal.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert repr(next(iter(changes.values()))) in sentence


# The same bytes


@pytest.mark.parametrize(("split", "size", "index"), GOLDEN)
def test_rows_have_the_recorded_bytes(split, size, index):
    row = load_pairs("wardrobe", split=split, size=size, count=index + 1)[index]
    assert digest(row) == GOLDEN[split, size, index]


@pytest.fixture(scope="module")
def drawn_parts() -> dict[str, str]:
    return recorded_parts()


def test_the_recorded_parts_are_all_there_are(drawn_parts):
    assert drawn_parts.keys() == GOLDEN_PARTS.keys()
    named = {"hair": HAIR_STYLES, "top": TOPS, "bottom": BOTTOMS, "shoes": SHOES, "pattern": PATTERNS}
    drawers = {"bag": DRAWN_BAGS, "print": PRINTS, "beard": BEARDS, "mouth": MOUTHS, "backdrop": BACKDROPS}
    for kind, names in (named | drawers).items():
        assert {name.split(": ")[1] for name in GOLDEN_PARTS if name.startswith(f"{kind}: ")} == set(names)


@pytest.mark.parametrize("name", GOLDEN_PARTS)
def test_each_part_has_the_recorded_bytes(name, drawn_parts):
    """Each part for itself, in both views and on both sides: few rows of the splits show any one of them."""
    assert drawn_parts[name] == GOLDEN_PARTS[name]


def test_rows_have_the_recorded_labels():
    readers = [Wardrobe(split, 64) for split in SPLITS]
    labels = [describe(*reader.scene(index)[:3]) for reader in readers for index in range(40)]
    assert hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest() == GOLDEN_LABELS


def test_rows_have_the_recorded_draws():
    """What is drawn and has no label, such as the shades of the colours, the pose and the things that stand about."""
    readers = [Wardrobe(split, 64) for split in SPLITS]
    scenes = [repr(reader.scene(index)[:3]) for reader in readers for index in range(200)]
    assert hashlib.sha256("\n".join(scenes).encode()).hexdigest() == GOLDEN_DRAWS


def test_no_cache_outlives_other_pixels_or_labels(monkeypatch):
    before = Wardrobe("train", 64).key
    for version in ("DRAWING", "LABELS"):
        with monkeypatch.context() as patch:
            patch.setattr(wardrobe, version, getattr(wardrobe, version) + 1)
            assert Wardrobe("train", 64).key != before


def test_another_process_draws_the_same_bytes():
    program = (
        "import sys, hashlib\n"
        "from backshan_diffusers.data import load_pairs\n"
        "for row in load_pairs('wardrobe', split='test', size=64, count=3):\n"
        "    pictures = [v for v in row.values() if hasattr(v, 'tobytes')]\n"
        "    print(hashlib.sha256(b''.join(p.tobytes() for p in pictures)).hexdigest(), row['group_id'])\n"
    )
    here = [f"{digest(row)} {row['group_id']}" for row in load_pairs("wardrobe", split="test", size=64, count=3)]
    root = Path(__file__).parents[1]
    for hash_seed in ("1", "2", "3", "4"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root), "PATH": ""}
        drawn = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert drawn.stdout.split("\n")[:-1] == here


def test_splits_share_no_seed_and_no_picture():
    ranges = [range(first, first + SEEDS_PER_SPLIT) for first in SPLITS.values()]
    assert all(a.stop <= b.start or b.stop <= a.start for i, a in enumerate(ranges) for b in ranges[:i])
    for split, seeds in zip(SPLITS, ranges, strict=True):
        reader = Wardrobe(split, 64)
        assert (reader.seed(0), reader.seed(reader.capacity - 1)) == (seeds[0], seeds[-1])
    digests = [digest(row) for split in SPLITS for row in load_pairs("wardrobe", split=split, size=64, count=20)]
    assert len(set(digests)) == len(digests)


def test_rows_are_fresh_draws():
    outfits = [repr(Wardrobe("train", 64).scene(index)[:3]) for index in range(400)]
    assert len(set(outfits)) == len(outfits)


@pytest.mark.parametrize("size", [64, 128, 256, 1024])
def test_every_size_shows_the_same_scene(size):
    row = load_pairs("wardrobe", split="train", size=size, count=4)[3]
    reference = load_pairs("wardrobe", split="train", size=512, count=4)[3]
    assert row["attributes"] == reference["attributes"]
    for name in PICTURES:
        assert row[name].size == (size, size)
        small, large = array(row[name].resize((64, 64))), array(reference[name].resize((64, 64)))
        assert np.abs(small - large).mean() < 4, name


# Groups


def test_the_last_of_each_run_wears_the_outfit_of_the_one_before(rows):
    groups = [row["group_id"] for row in rows]
    for index in range(1, len(rows)):
        assert (groups[index] == groups[index - 1]) == (index % RUN == RUN - 1), index
    assert len(set(groups)) == len(rows) - len(rows) // RUN
    worn = ("top", "top_color", "top_pattern", "bottom", "bottom_color", "shoes", "bag", "bag_side", "watch")
    for index in range(RUN - 1, len(rows), RUN):
        first, second = rows[index - 1], rows[index]
        assert all(first["attributes"][key] == second["attributes"][key] for key in worn)
        assert digest(first) != digest(second)
        same = ("skin", "hair", "hair_color", "height", "width", "backdrop")
        assert any(first["attributes"][key] != second["attributes"][key] for key in same)


# Masks


def test_masks_are_nested_and_filled(rows):
    for row in rows:
        masks = {name: array(row[name]) for name in MASKS}
        assert (masks["front_face"] <= masks["front_head"]).all()
        assert (masks["front_head"] <= masks["front_person"]).all()
        assert (masks["front_garments"] + masks["front_head"] <= masks["front_person"] + 1).all()
        assert (masks["back_garments"] <= masks["back_person"]).all()
        shares = {name: mask.mean() / 255 for name, mask in masks.items()}
        assert shares["front_face"] > 0.002
        assert shares["front_head"] > 0.006
        assert shares["front_garments"] > 0.04
        assert shares["back_garments"] > 0.04


def test_the_head_has_hair_and_neck_and_the_face_has_not():
    _, front = paint_pair(256, *dressed(hair="fringe bob", hair_cloth=GREEN, skin=Cloth((230, 180, 150))))
    picture, masks = front.picture().astype(int), front.masks()
    hair = (picture[:, :, 1] > picture[:, :, 0] + 40) & (picture[:, :, 1] > picture[:, :, 2] + 40)
    assert (masks[HEAD][hair] > 127).mean() > 0.85  # the outer half of the outline belongs to nothing
    assert (masks[FACE][hair] > 127).mean() < 0.05
    face, head = masks[FACE] > 127, masks[HEAD] > 127
    assert 0.15 < face.sum() / head.sum() < 0.6
    lowest_of_face, lowest_of_head = (np.nonzero(mask.any(axis=1))[0][-1] for mask in (face, head))
    assert lowest_of_head > lowest_of_face + 4  # the neck


def test_the_person_mask_parts_the_person_from_the_backdrop(rows):
    """Before a plain wall, everything that is not of the wall's colour is the person, the outline or its shadow."""
    plain = [row for row in rows if row["attributes"]["backdrop"] == "plain"]
    for row in plain:
        for view in ("back", "front"):
            picture, mask = array(row[view]), array(row[f"{view}_person"])
            upper = np.zeros(mask.shape, bool)
            upper[:110] = True  # the shadow lies on the floor
            wall = picture[0, 0]
            far = mask.copy()
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                far = np.maximum(far, np.roll(mask, (dy, dx), (0, 1)))
            outside = upper & (far == 0)
            assert np.abs(picture[outside] - wall).max() <= 8  # of 255


def test_the_person_fills_the_height(rows):
    heights = []
    for row in rows:
        lines = np.nonzero(array(row["front_person"]).max(axis=1) > 127)[0]
        heights.append((lines[-1] - lines[0] + 1) / 128)
        assert lines[0] > 0
        assert lines[-1] < 127
    assert 0.86 < np.mean(heights) < 0.94


# Both sides of one person


def test_the_mirrored_back_lies_on_the_front(rows):
    mirrored = [overlap(array(row["back_person"])[:, ::-1], array(row["front_person"])) for row in rows]
    straight = [overlap(array(row["back_person"]), array(row["front_person"])) for row in rows]
    assert min(mirrored) > 0.95
    assert np.mean(mirrored) > 0.985
    assert np.mean(straight) < 0.9


@pytest.mark.parametrize("name", parts(1))
def test_with_left_and_right_exchanged_each_view_is_its_mirror_image(name):
    """But for what sits on one side of every wearer, as the pocket of a shirt does, and for rounding."""
    for worn in [worn for side in (-1, 1) for worn in posed_scenes(side)[name]]:
        for drawn, other in zip(paint_pair(64, *worn), paint_pair(64, *exchanged(worn)), strict=True):
            difference = np.abs(drawn.picture().astype(int) - other.picture()[:, ::-1]).max(axis=2)
            assert difference.mean() < 2.5 and (difference > 60).sum() <= 25  # of 255, and of 4096 pixels
            for mask, other_mask in zip(drawn.masks().values(), other.masks().values(), strict=True):
                assert (np.abs(mask.astype(int) - other_mask[:, ::-1]) > 127).sum() <= 8


class Tracing(View):
    """A view that keeps the points of the person, in person coordinates, between which something was drawn."""

    def place(self, points, *bits):
        traced = self.__dict__.setdefault("traced", set())
        traced |= {(round(x, 9), round(y, 9)) for x, y in points}
        return super().place(points, *bits)


def sided_points(paint, side: int, **changes) -> list[set]:
    """The points, in the back and in the front, that `paint` uses with a thing on one side and not on the other."""
    traced = {}
    for each in (side, -side):
        worn = dressed(**{name: value if isinstance(value, str) else value * each for name, value in changes.items()})
        for view in (-1, 1):
            tracing = Tracing(Canvas(64), view, *worn, Figure(worn[1]))
            paint(tracing)
            traced[each, view] = getattr(tracing, "traced", set())
    return [traced[side, view] - traced[-side, view] for view in (-1, 1)]


# Everything that may be on either side: what draws it, and the fields that put it on the wearer's left.
SIDED = {
    **{bag: (paint_bag, {"bag": bag, "bag_side": 1}) for bag in DRAWN_BAGS if bag != "backpack"},
    **{extra: ({**TAILS, **KNOTS}[extra], {"hair_side": 1}) for extra in SIDED_HAIR},
    "watch": (lambda view: [paint_watch(view, side) for side in (-1, 1)], {"watch": 1}),
    **{
        f"rolled sleeve of a {name}": (
            lambda view: [paint(view, side) for side in (-1, 1) for paint in (paint_arm, paint_sleeve)],
            {"top": name, "rolled_sleeve": 1},
        )
        for name, spec in TOPS.items()
        if spec.sleeve == 1.0
    },
    **{
        f"shoulder of a {name}": (paint_top, {"top": name, "bare_shoulder": 1})
        for name, spec in TOPS.items()
        if spec.neck == "one shoulder"
    },
    **{
        f"hem of a {name}": (
            paint_top,
            {"top": name, "hem_drop": 0.05, "bare_shoulder": 1 if spec.neck == "one shoulder" else 0},
        )
        for name, spec in TOPS.items()
        if spec.sleeve < 1
    },
}


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("thing", SIDED)
def test_what_is_on_one_side_is_at_the_same_place_of_the_person_in_both_views(thing, side):
    """One view may show more of it, a clasp or a ribbon; no point of what both show is another one in the other."""
    back, front = sided_points(SIDED[thing][0], side, **SIDED[thing][1])
    assert len(back) >= 2 and len(front) >= 2
    assert back <= front or front <= back


@pytest.mark.parametrize("bag", ["crossbody", "shoulder", "handbag"])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_bag_changes_sides_between_the_views(bag, side):
    """A bag on the person's left is on the picture's right from the front and on its left from the back."""
    back, front = paint_pair(128, *dressed(bag=bag, bag_side=side, bag_cloth=GREEN))
    assert np.sign(green_side(front.picture())) == side
    assert np.sign(green_side(back.picture())) == -side
    back_person, front_person = back.masks()[PERSON].astype(int), front.masks()[PERSON].astype(int)
    assert overlap(back_person[:, ::-1], front_person) > overlap(back_person, front_person) + 0.005
    assert overlap(back_person[:, ::-1], front_person) > 0.97
    assert overlap(back.masks()[GARMENT][:, ::-1], front.masks()[GARMENT]) > overlap(
        back.masks()[GARMENT], front.masks()[GARMENT]
    )


@pytest.mark.parametrize("side", [-1, 1])
def test_a_strap_runs_from_the_bag_over_the_other_shoulder(side):
    pictures = paint_pair(128, *dressed(bag="crossbody", bag_side=side, bag_cloth=GREEN))
    shoulders = [canvas.picture()[29:36] for canvas in pictures]
    assert [np.sign(green_side(rows)) for rows in shoulders] == [side, -side]


@pytest.mark.parametrize("top", ["one-shoulder top", "evening dress"])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_bare_shoulder_changes_sides_between_the_views(top, side):
    outfit, person, scene = dressed(top=top, bare_shoulder=side)
    person = dataclasses.replace(person, skin=GREEN, arms=((0.7, 0.7), (0.7, 0.7)))
    back, front = paint_pair(128, outfit, person, scene)
    shoulders = slice(27, 36)  # rows between the neck and the armpits
    bare = [canvas.picture()[shoulders, 50:78] for canvas in (back, front)]
    assert np.sign(green_side(bare[1])) == side
    assert np.sign(green_side(bare[0])) == -side


@pytest.mark.parametrize("side", [-1, 1])
def test_a_slanting_hem_changes_sides_between_the_views(side):
    straight = [canvas.masks()[GARMENT] for canvas in paint_pair(128, *dressed(top="summer dress"))]
    slanting = [
        canvas.masks()[GARMENT] for canvas in paint_pair(128, *dressed(top="summer dress", hem_drop=0.05 * side))
    ]
    for sign, before, after in zip((-1, 1), straight, slanting, strict=True):
        more = after.astype(int) - before
        columns = np.nonzero(more > 127)[1]
        assert len(columns) > 20
        assert np.sign(columns.mean() - 63.5) == sign * side


@pytest.mark.parametrize("side", [-1, 1])
def test_a_watch_changes_sides_between_the_views(side):
    without = paint_pair(128, *dressed())
    with_watch = paint_pair(128, *dressed(watch=side))
    for sign, before, after in zip((-1, 1), without, with_watch, strict=True):
        columns = np.nonzero(np.abs(after.picture().astype(int) - before.picture()).max(axis=2) > 40)[1]
        assert len(columns) > 3
        assert np.sign(columns.mean() - 63.5) == sign * side


@pytest.mark.parametrize("side", [-1, 1])
def test_a_watch_shows_its_dial_from_behind_and_hides_under_a_long_sleeve(side):
    def shown(**worn):
        pairs = (paint_pair(128, *dressed(**worn, watch=watch)) for watch in (0, side))
        before, after = ([canvas.picture().astype(int) for canvas in pair] for pair in pairs)
        return [new[np.abs(new - old).max(axis=2) > 40] for old, new in zip(before, after, strict=True)]

    cream = [((pixels[:, 0] > 150) & (pixels[:, 0] - pixels[:, 2] > 20)).sum() for pixels in shown()]
    assert cream[0] > 0 and cream[1] == 0
    sleeves = {rolled: shown(top="sweatshirt", rolled_sleeve=rolled) for rolled in (-side, 0, side)}
    assert {rolled for rolled, views in sleeves.items() if any(map(len, views))} == {side}
    assert all(map(len, sleeves[side]))


@pytest.mark.parametrize("side", [-1, 1])
def test_a_rolled_sleeve_changes_sides_between_the_views(side):
    without = paint_pair(128, *dressed(top="sweatshirt"))
    rolled = paint_pair(128, *dressed(top="sweatshirt", rolled_sleeve=side))
    for sign, before, after in zip((-1, 1), without, rolled, strict=True):
        less = before.masks()[GARMENT].astype(int) - after.masks()[GARMENT]
        columns = np.nonzero(less > 127)[1]
        assert len(columns) > 10
        assert np.sign(columns.mean() - 63.5) == sign * side


@pytest.mark.parametrize("hair", ["side ponytail", "side braid"])
@pytest.mark.parametrize("side", [-1, 1])
def test_lopsided_hair_changes_sides_between_the_views(hair, side):
    back, front = paint_pair(128, *dressed(hair=hair, hair_side=side))
    assert (lopsided_side(back), lopsided_side(front)) == (-side, side)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_ponytail_hangs_to_one_side_and_the_neck_hides_it_from_the_front(side):
    back, _ = paint_pair(128, *dressed(hair="ponytail", hair_side=side))
    assert lopsided_side(back) == -side


@pytest.mark.parametrize("side", [-1, 1])
def test_a_parting_changes_sides_between_the_views(side):
    """The front's hairline is highest at the parting; from behind the skin shows in it."""
    parted = dressed(hair="side parting", hair_side=side, hair_cloth=Cloth((20, 20, 20)), skin=GREEN)
    back, front = paint_pair(256, *parted)
    face = front.masks()[FACE]
    highest = face[np.nonzero(face.any(axis=1))[0][0]]
    assert np.sign(np.nonzero(highest)[0].mean() - 127.5) == side
    assert np.sign(green_side(back.picture()[:30])) == -side  # above the ears


@pytest.mark.parametrize(("side", "name"), [(-1, "right"), (0, "none"), (1, "left")])
def test_labels_name_the_wearers_side_and_the_pictures_side_of_the_light(side, name):
    outfit, person, scene = dressed(
        bag="handbag", bag_side=side, bare_shoulder=side, hem_drop=0.05 * side, rolled_sleeve=side, watch=side
    )
    light = side or 1
    person = dataclasses.replace(person, hair="side ponytail", hair_side=light)
    scene = dataclasses.replace(scene, light_side=light)
    labels = describe(outfit, person, scene)
    for label in ("bag_side", "bare_shoulder", "longer_hem", "rolled_sleeve", "watch"):
        assert labels[label] == name
    assert labels["hair_side"] == {-1: "right", 1: "left"}[light]
    assert labels["light_from"] == {-1: "left of the picture", 1: "right of the picture"}[light]


# For each label, what is drawn without the thing that it names, or with it on the other side or in another colour.
OTHERWISE = {
    "hair_side": lambda outfit, person: {"hair_side": -person.hair_side},
    "beard": lambda outfit, person: {"beard": "none"},
    "glasses": lambda outfit, person: {"glasses": False},
    "top_pattern": lambda outfit, person: {"top_cloth": Cloth(outfit.top_cloth.rgb)},
    "open": lambda outfit, person: {"is_open": False},
    "inner_color": lambda outfit, person: {"inner_cloth": GREEN},
    "tucked": lambda outfit, person: {"tucked": False},
    "bottom": lambda outfit, person: {"bottom": "shorts" if outfit.bottom == "long skirt" else "long skirt"},
    "bottom_color": lambda outfit, person: {"bottom_cloth": dataclasses.replace(outfit.bottom_cloth, rgb=GREEN.rgb)},
    "bottom_pattern": lambda outfit, person: {"bottom_cloth": Cloth(outfit.bottom_cloth.rgb)},
    "belt": lambda outfit, person: {"belt": False},
    "bag": lambda outfit, person: {"bag": "none"},
    "bag_side": lambda outfit, person: {"bag_side": -outfit.bag_side},
    "bare_shoulder": lambda outfit, person: {"bare_shoulder": -outfit.bare_shoulder},
    "longer_hem": lambda outfit, person: {"hem_drop": 0.0},
    "rolled_sleeve": lambda outfit, person: {"rolled_sleeve": 0},
    "watch": lambda outfit, person: {"watch": 0},
    "chest_print": lambda outfit, person: {"chest_print": "none"},
    "back_print": lambda outfit, person: {"back_print": "none"},
}

# What is taken away first because it may lie over the thing: a jacket is opened, a sleeve rolled up, a hem let out.
UNCOVERED = {
    "inner_color": lambda outfit: {"is_open": outfit.top_spec.opens},
    "belt": lambda outfit: {"tucked": True},
    "longer_hem": lambda outfit: {"tucked": False},
    "watch": lambda outfit: {"rolled_sleeve": outfit.watch},
}


def is_there(label: str, worn: Worn) -> bool:
    """Whether the pictures would be others without what the label names, with nothing lying over it."""
    cover = {"bag": "none"} if not label.startswith("bag") else {}
    cover |= {"hair": "bald"} if label != "hair_side" else {}
    worn = changed(worn, **cover | UNCOVERED.get(label, lambda outfit: {})(worn[0]))
    other = changed(worn, **OTHERWISE[label](*worn[:2]))
    if worn == other:
        return False
    drawn = [[canvas.picture() for canvas in paint_pair(64, *each)] for each in (worn, other)]
    return not np.array_equal(*drawn)


def test_labels_are_true_of_what_would_be_drawn_with_nothing_over_it():
    """What the drawing of a thing depends on is what its label depends on: no belt with a dress, say."""
    reader, said = Wardrobe("test", 64), set()
    for index in range(90):
        worn = reader.scene(index)[:3]
        labels = describe(*worn)
        for label in OTHERWISE:
            says = labels[label] not in (False, "none", "plain")
            said.add((label, says))
            assert says == is_there(label, worn), (index, label, labels)
    assert said == {(label, says) for label in OTHERWISE for says in (False, True)}


@pytest.mark.parametrize("hair", HAIR_STYLES)
def test_hair_has_a_side_where_the_other_side_looks_different(hair):
    left, right = (dressed(hair=hair, hair_side=side, hair_cloth=Cloth((90, 50, 30))) for side in (1, -1))
    assert (describe(*left)["hair_side"] == "left") == is_there("hair_side", left)
    assert (describe(*right)["hair_side"] == "right") == is_there("hair_side", right)


@pytest.mark.parametrize("light", [-1, 1])
def test_the_light_comes_from_one_side_of_the_picture_in_both_views(light):
    outfit, person, scene = plain_scene()
    person = dataclasses.replace(person, arms=((0.8, 0.8), (0.8, 0.8)))  # away from the trunk
    scene = dataclasses.replace(scene, light_side=light)
    for canvas in paint_pair(128, outfit, person, scene):
        trunk = canvas.picture()[40:58].astype(float).mean(axis=2)
        assert light * (trunk[:, 66:72].mean() - trunk[:, 56:62].mean()) > 20


def test_the_backdrop_is_the_same_in_both_views_and_not_mirrored():
    outfit, person, scene = plain_scene()
    scene = dataclasses.replace(scene, backdrop="cluttered", blocks=((0.02, 0.3, 0.2, 0.7, (20, 60, 200)),))
    back, front = (canvas.picture().astype(int) for canvas in paint_pair(128, outfit, person, scene))
    assert (back[:110, :30] == front[:110, :30]).all()
    assert (back[:110, 98:] == front[:110, 98:]).all()
    assert np.abs(back[:110, :30] - front[:110, ::-1][:, :30]).max() > 100


def test_only_the_front_has_a_face():
    outfit, person, scene = dressed(iris=(30, 220, 40))
    back, front = paint_pair(256, outfit, person, scene)
    assert abs(green_side(front.picture())) < 0.1
    with pytest.raises(AssertionError, match="nothing green"):
        green_side(back.picture())


@pytest.mark.parametrize(("attribute", "shown"), [("chest_print", "front"), ("back_print", "back")])
def test_a_print_is_on_its_side_alone(attribute, shown):
    pictures = dict(
        zip(
            ("back", "front"),
            paint_pair(128, *dressed(**{attribute: "circle"}, print_rgb=GREEN.rgb)),
            strict=True,
        )
    )
    assert abs(green_side(pictures.pop(shown).picture())) < 0.1
    with pytest.raises(AssertionError, match="nothing green"):
        green_side(next(iter(pictures.values())).picture())


def test_a_back_shows_how_far_the_body_is_turned():
    """By the spine: a body that is turned to its left shows it on the right of its middle, as in front the closure."""
    backs, spines = {}, {}
    for turn in (-0.15, 0.15):
        worn = dressed(top="sweatshirt", turn=turn)
        backs[turn] = paint_pair(128, *worn)[0].picture().astype(int).sum(axis=2)
        spines[turn] = 64 + turn * 0.05 * worn[1].height * 128
    row = round((0.5 + (0.485 - SOLE + 0.36) * worn[1].height) * 128)
    for turn, spine in spines.items():
        darker = (backs[-turn] - backs[turn])[row - 3 : row + 3].mean(axis=0)
        assert darker.max() > 60
        assert abs(darker.argmax() + 0.5 - spine) <= 1


# Fronts with one thing on the other side


def test_other_side_fronts_move_one_thing_and_nothing_else():
    reader = Wardrobe("validation", 64)
    found = set()
    for index in (*range(60), 168):  # in which hair hangs to the other side
        outfit, person, scene, _ = reader.scene(index)
        sides = {
            "bag": outfit.bag_side,
            "bare shoulder": outfit.bare_shoulder,
            "longer hem": outfit.hem_drop,
            "rolled sleeve": outfit.rolled_sleeve,
        }
        moved = reader.other_side_fronts(index)
        assert moved.keys() == {name for name, side in sides.items() if side} | {HAIR_SIDE}
        if "bag" in moved and outfit.bag not in found:
            found.add(outfit.bag)
            changed = dataclasses.replace(outfit, bag_side=-outfit.bag_side)
            assert np.array_equal(moved["bag"], paint_pair(64, changed, person, scene)[1].picture())
            assert not np.array_equal(moved["bag"], np.asarray(reader.row(index)["front"]))
        if person.hair == "side ponytail" and ("hair", person.hair_side) not in found:
            found.add(("hair", person.hair_side))
            changed = dataclasses.replace(person, hair_side=-person.hair_side)
            assert np.array_equal(moved[HAIR_SIDE], paint_pair(64, outfit, changed, scene)[1].picture())
            assert not np.array_equal(moved[HAIR_SIDE], np.asarray(reader.row(index)["front"]))
    assert found == {"crossbody", "shoulder", "handbag", ("hair", -1), ("hair", 1)}


def test_every_side_of_an_outfit_is_labelled_in_the_attributes():
    """The names under which sides are reported are those of the attributes, so that both can be joined."""
    labels = {
        "bag": "bag_side",
        "bare shoulder": "bare_shoulder",
        "longer hem": "longer_hem",
        "rolled sleeve": "rolled_sleeve",
    }
    assert labels.keys() == OUTFIT_SIDES.keys()
    reader = Wardrobe("validation", 64)
    for index in range(20):
        attributes, moved = reader.row(index)["attributes"], reader.other_side_fronts(index)
        assert {thing for thing, label in labels.items() if attributes[label] != "none"} == moved.keys() - {HAIR_SIDE}


# Fronts without one thing


def test_fronts_without_leave_one_thing_out_and_nothing_else():
    reader, seen = Wardrobe("validation", 96), set()
    for index in range(100):
        outfit, _, _, _ = reader.scene(index)
        row, without = reader.row(index), reader.fronts_without(index)
        spec, front = outfit.top_spec, np.asarray(row["front"]).astype(int)
        pockets = {"pocket", "two pockets", "hip pockets", "kangaroo"} & set(spec.details)
        expected = {
            spec.closure if not outfit.is_open else "none",
            spec.collar,
            "pockets" if pockets else "none",
            "face",
        } - {"none"}
        assert without.keys() == expected
        seen |= expected
        for thing, picture in without.items():
            differs = np.abs(picture - front).max(axis=2) > 0
            mask = row["front_head" if thing == "face" else "front_person"]
            inside = np.asarray(mask.filter(ImageFilter.MaxFilter(5))) > 0  # outlines reach beyond what they surround
            assert differs.any() and not (differs & ~inside).any(), (index, thing)
    assert seen == {*CLOSURES, *COLLARS, "pockets", "face"}


@pytest.mark.parametrize(
    ("thing", "top", "rows"),
    (
        ("closure", "hoodie", (0.2, 0.51)),
        ("closure", "shirt", (0.2, 0.53)),
        ("closure", "polo", (0.19, 0.31)),
        ("closure", "blazer", (0.29, 0.55)),
        ("collar", "blazer", (0.15, 0.35)),
        ("collar", "hoodie", (0.12, 0.28)),
        ("pockets", "hoodie", (0.39, 0.5)),
    ),
)
def test_what_is_left_out_is_missing_where_it_belongs(thing, top, rows):
    outfit, person, scene = dressed(top=top, tucked=False)
    worn = 128, outfit, person, scene
    whole, without = paint_pair(*worn), paint_pair(*worn, frozenset({thing}))
    assert np.array_equal(whole[0].picture(), without[0].picture())  # the back keeps all
    differs = np.argwhere((whole[1].picture() != without[1].picture()).any(axis=2))
    assert len(differs) > 16
    top_row, bottom_row = ((0.5 + (0.485 - SOLE + y) * person.height) * 128 for y in rows)
    assert top_row - 3 <= differs[:, 0].min() and differs[:, 0].max() <= bottom_row + 3


def test_a_hood_that_is_left_out_is_gone_behind_the_neck_too():
    worn = 128, *dressed(top="hoodie", hair="bald")
    whole, without = (paint_pair(*worn, out)[1].masks()[PERSON] > 127 for out in (frozenset(), frozenset({"collar"})))
    assert (whole & ~without).sum() > 20 and not (without & ~whole).any()


def test_a_top_that_is_worn_open_has_no_closure_to_leave_out():
    reader = Wardrobe("validation", 64)
    outfits = {index: reader.scene(index)[0] for index in range(60)}
    opened = [index for index, outfit in outfits.items() if outfit.is_open]
    assert opened and not any(outfits[index].top_spec.closure in reader.fronts_without(index) for index in opened)


# Variety


def sampled(count: int) -> list[dict]:
    reader = Wardrobe("train", 64)
    return [dict(zip(("outfit", "person", "scene"), reader.scene(index), strict=False)) for index in range(count)]


def test_every_choice_is_reached_by_sampling():
    scenes = sampled(1500)
    outfits, people = [entry["outfit"] for entry in scenes], [entry["person"] for entry in scenes]
    assert {person.hair for person in people} == set(HAIR_STYLES)
    assert len(HAIR_STYLES) >= 12
    assert {outfit.top for outfit in outfits} == set(TOPS)
    assert len(TOPS) >= 12
    assert {outfit.bottom for outfit in outfits} == set(BOTTOMS)
    assert len(BOTTOMS) >= 6
    assert {outfit.shoes for outfit in outfits} == set(SHOES)
    assert len(SHOES) >= 5
    assert {outfit.bag for outfit in outfits} == set(BAGS)
    patterns = {outfit.top_cloth.pattern for outfit in outfits} | {outfit.bottom_cloth.pattern for outfit in outfits}
    assert patterns == set(PATTERNS)
    assert {entry["scene"].light_side for entry in scenes} == {-1, 1}
    for field in ("bag_side", "bare_shoulder", "rolled_sleeve", "watch"):
        assert {getattr(outfit, field) for outfit in outfits} == {-1, 0, 1}
    shares = {name: np.mean([entry["scene"].backdrop == name for entry in scenes]) for name in BACKDROPS}
    assert abs(shares["plain"] - 0.5) < 0.05
    assert abs(shares["gradient"] - 0.3) < 0.05


@pytest.mark.parametrize(
    ("change", "choices", "least"),
    [
        (lambda hair: dressed(hair=hair, hair_cloth=Cloth((90, 50, 30))), HAIR_STYLES, 12),
        (lambda top: dressed(top=top, bare_shoulder=1 if TOPS[top].neck == "one shoulder" else 0), TOPS, 40),
        (lambda bottom: dressed(bottom=bottom), BOTTOMS, 40),
        (lambda shoes: dressed(shoes=shoes, shoe_cloth=Cloth((120, 60, 40))), SHOES, 10),
        (lambda bag: dressed(bag=bag, bag_side=1), BAGS, 60),
        (lambda name: dressed(top_cloth=Cloth((150, 150, 150), (40, 40, 60), name)), PATTERNS, 60),
    ],
    ids=["hair", "tops", "bottoms", "shoes", "bags", "patterns"],
)
def test_every_choice_looks_different_from_both_sides(change, choices, least):
    """Any two choices differ in at least `least` of the 128 x 128 pixels in the front, and in some in the back."""
    drawn = [[canvas.picture().astype(np.int16) for canvas in paint_pair(128, *change(choice))] for choice in choices]
    names = list(choices)
    for view, needed in ((0, 4), (1, least)):
        for i in range(len(drawn)):
            for j in range(i):
                different = np.abs(drawn[i][view] - drawn[j][view]).max(axis=2) > 12
                assert different.sum() >= needed, (names[i], names[j], view)
