"""Sheets of pictures."""

import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest

from backshan_diffusers.sheets import picture_sheet


def test_sheet_puts_pictures_in_a_grid():
    red, blue = PIL.Image.new("RGB", (10, 20), "red"), PIL.Image.new("RGB", (30, 6), "blue")
    pixels = np.asarray(picture_sheet([[red, blue], [blue]], gap=2))
    expected = np.full((2 + 20 + 2 + 6 + 2, 2 + 30 + 2 + 30 + 2, 3), 255, np.uint8)
    expected[2:22, 12:22] = (255, 0, 0)  # centred in a column that is 30 px wide
    expected[9:15, 34:64] = (0, 0, 255)
    expected[24:30, 2:32] = (0, 0, 255)
    np.testing.assert_array_equal(pixels, expected)


def test_sheet_with_titles_empty_cells_and_cell_side():
    picture = PIL.Image.new("RGB", (200, 100), "red")
    sheet = picture_sheet([[picture, None, picture]], titles=["back", "generated", "front"], cell_side=64, gap=4)
    without = picture_sheet([[picture, None, picture]], cell_side=64, gap=4)
    assert without.size == (64 + 64 + 4 * 4, 32 + 2 * 4)
    assert sheet.width == without.width and sheet.height > without.height
    title_height = sheet.height - without.height
    assert np.array_equal(np.asarray(sheet)[title_height:], np.asarray(without))
    assert (np.asarray(sheet)[:title_height, :68] < 100).any() and (np.asarray(sheet)[:title_height, 80:] < 100).any()
    with pytest.raises(ValueError, match="3 columns"):
        picture_sheet([[picture, None, picture]], titles=["back"])
    for rows in ([], [[]], [[None]]):
        with pytest.raises(ValueError, match="at least one picture"):
            picture_sheet(rows)


def test_titles_stand_over_the_middle_of_their_columns_and_do_not_grow_for_ever():
    heights = []
    for side in (128, 512):
        sheet = picture_sheet([[PIL.Image.new("RGB", (side, side), "red")] * 2], titles=["over", "over"], gap=4)
        heights.append(sheet.height - side)
        dark = (np.asarray(sheet)[: heights[-1] - 4] < 100).all(axis=-1).any(axis=0).nonzero()[0]
        for left in (4, 8 + side):
            title = dark[(dark >= left) & (dark < left + side)]
            assert (title.min() + title.max()) / 2 == pytest.approx(left + side / 2, abs=2)
    assert heights[0] == heights[1]


def test_titles_of_narrow_columns_can_still_be_read():
    heights = []
    for side in (16, 72):
        heights.append(picture_sheet([[PIL.Image.new("RGB", (side, side), "red")]], titles=["over"]).height - side)
    assert heights[0] == heights[1]


def test_a_sheet_names_its_rows_and_cuts_names_that_are_too_long():
    picture = PIL.Image.new("RGB", (100, 40), "red")
    names = ["a.png", "an" * 100 + ".png"]
    sheet, without = picture_sheet([[picture]] * 2, captions=names), picture_sheet([[picture]] * 2)
    line = (sheet.height - without.height) // 2
    assert line > 9 and sheet.width == without.width == 108
    pixels = np.asarray(sheet)
    for top, widest in ((4, 60), (48 + line, 104)):
        assert (pixels[top : top + 40, 4:104] == (255, 0, 0)).all()
        dark = (pixels[top + 40 : top + 40 + line] < 100).all(axis=-1).any(axis=0).nonzero()[0]
        assert 4 <= dark.min() < 8 and dark.max() < widest
    with pytest.raises(ValueError, match="2 rows: give as many captions, not 1"):
        picture_sheet([[picture]] * 2, captions=names[:1])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' fonts cannot be put out of sight")
def test_captions_have_letters_that_pillows_own_font_lacks(tmp_path, monkeypatch):
    """The installed font that has most of them is taken; where there is none, each letter is a box, as wide as any."""
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    for variable in ("XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(variable, str(tmp_path))
    picture = PIL.Image.new("RGB", (200, 40), "red")

    def lettering(caption: str) -> np.ndarray:
        sheet = np.asarray(picture_sheet([[picture]], captions=[caption]))[44:]
        dark = (sheet < 128).all(axis=-1)
        return sheet[dark.any(axis=1)][:, dark.any(axis=0)]

    boxes, plain = lettering("спина"), lettering("anna.png")
    assert np.array_equal(boxes, lettering("后面后面后"))
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), fonts)
    sans = lettering("спина")
    assert not np.array_equal(sans, boxes)
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf"), fonts / "arial.ttf")
    assert np.array_equal(lettering("спина"), sans)  # of two that have all of them the one that is named first
    assert np.array_equal(lettering("后面后面后"), boxes)  # of which that font has none
    assert np.array_equal(lettering("anna.png"), plain)
