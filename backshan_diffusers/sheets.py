"""Pictures side by side, with a text over each column and under each row."""

import itertools
from collections.abc import Sequence
from contextlib import suppress

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from .pictures import WHITE

FONTS = (
    "NotoSansCJK-Regular.ttc",
    "ipaexg.ttf",
    "YuGothM.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)
"""Fonts of Linux, Windows and macOS that know more letters than Pillow's own, which has ASCII and little else."""

MISSING = "\uffff"
"""No letter: what a font draws for it, it draws for every letter that it lacks."""


def picture_sheet(
    rows: Sequence[Sequence[PIL.Image.Image | None]],
    titles: Sequence[str] | None = None,
    cell_side: int | None = None,
    gap: int = 4,
    captions: Sequence[str] | None = None,
) -> PIL.Image.Image:
    """Pictures side by side on white.

    Args:
        rows: rows of RGB pictures of any size; `None` leaves a cell empty, and rows may differ in length.
        titles: one short text over each column.
        cell_side: pictures are resized to fit in squares of this side in px; by default each keeps its size.
        gap: white space between and around the pictures, in px.
        captions: one text under each row, cut where it is wider than the sheet.

    Returns:
        `PIL.Image.Image`: mode `RGB`; each column is as wide and each row as high as its largest picture.

    Raises:
        ValueError: if there is no picture, or there are not as many titles as columns or captions as rows.
    """
    if cell_side is not None:
        rows = [[cell and PIL.ImageOps.contain(cell, (cell_side, cell_side)) for cell in row] for row in rows]
    _check_cells(rows, titles, captions)
    widths = [max((cell.width for cell in column if cell), default=0) for column in itertools.zip_longest(*rows)]
    heights = [max((cell.height for cell in row if cell), default=0) for row in rows]

    font = _font_for("".join(captions or ()), min(16, max(9, max(widths) // 8)))
    line_height = sum(font.getmetrics()) + gap
    caption_height = 0 if captions is None else line_height
    top = gap if titles is None else gap + line_height
    size = (sum(widths) + gap * (len(widths) + 1), top + sum(height + gap + caption_height for height in heights))
    sheet = PIL.Image.new("RGB", size, WHITE)
    draw = PIL.ImageDraw.Draw(sheet)
    lefts = [gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    for title, left, width in zip(titles or (), lefts, widths):
        draw.text((left + width / 2, gap), title, fill="black", font=font, anchor="ma")
    for row, height, caption in zip(rows, heights, captions or [""] * len(rows)):
        for cell, left, width in zip(row, lefts, widths):
            if cell:
                sheet.paste(cell, (left + (width - cell.width) // 2, top + (height - cell.height) // 2))
        text = _cut_to_width(caption, size[0] - 2 * gap, font)
        draw.text((gap, top + height + gap), text, fill="black", font=font)
        top += height + gap + caption_height
    return sheet


def _check_cells(rows: Sequence[Sequence], titles: Sequence[str] | None, captions: Sequence[str] | None) -> None:
    if not any(cell for row in rows for cell in row):
        raise ValueError("a sheet needs at least one picture: give rows that are not empty.")
    columns = max(len(row) for row in rows)
    if titles is not None and len(titles) != columns:
        raise ValueError(f"the sheet has {columns} columns: give as many titles, not {len(titles)}.")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"the sheet has {len(rows)} rows: give as many captions, not {len(captions)}.")


def _cut_to_width(text: str, width: int, font: PIL.ImageFont.FreeTypeFont) -> str:
    """The whole of a text, or as much of its begin and end as fits into `width` px."""
    shorter = (f"{text[: kept // 2]}...{text[-(kept // 2) :]}" for kept in range(len(text) - 1, 1, -1))
    return next((cut for cut in itertools.chain([text], shorter) if font.getlength(cut) <= width), "")


def _font_for(text: str, size: int) -> PIL.ImageFont.FreeTypeFont:
    """Of Pillow's own font and those of `FONTS` that are installed the one that lacks fewest letters of a text, and of
    equals the first.

    Args:
        text: whatever will be written.
        size: height in px.
    """
    own = PIL.ImageFont.load_default(size)
    if not _lacking(own, text):  # the others have to be looked for in all folders of fonts
        return own
    installed = [own]
    for name in FONTS:
        with suppress(OSError):
            installed.append(PIL.ImageFont.truetype(name, size))
    return min(installed, key=lambda font: _lacking(font, text))


def _lacking(font: PIL.ImageFont.FreeTypeFont, text: str) -> int:
    """How many letters of a text a font does not have."""
    box = bytes(font.getmask(MISSING))
    return sum(bytes(font.getmask(letter)) == box for letter in set(text))
