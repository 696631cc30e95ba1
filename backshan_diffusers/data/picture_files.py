"""Pairs that lie in a folder as picture files, with what a `metadata.csv` beside them says."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..pictures import PICTURE_SUFFIXES
from .pairs import SPLITS, VIEWS, PairsError
from .stored import Parts, files_key, stamp

METADATA = "metadata.csv"
NAME = re.compile(rf"(?P<item>.+)_(?P<view>{'|'.join(VIEWS)})")
"""Stem of a file that does not lie in a folder of its view."""


@dataclass(frozen=True)
class PictureFiles:
    """The pairs of one folder, in the order of their names.

    Args:
        root: the folder.
        key: of all files' names, sizes and times of change.
        item_ids: what the names of back and front have in common.
        group_ids: of the metadata; where it says nothing, the item's own id.
        faults: pairs with a side missing or doubled, and lines of the metadata without pictures, by position.
        files: back and front of each complete pair.
        labels: further columns of the metadata, as text, for each pair.
    """

    root: Path
    key: str
    item_ids: list[str] = field(compare=False, repr=False)
    group_ids: list[str] = field(compare=False, repr=False)
    faults: dict[int, str] = field(compare=False, repr=False)
    files: list[tuple[str, ...]] = field(compare=False, repr=False)
    labels: list[dict[str, str]] = field(compare=False, repr=False)

    def sizes(self) -> list[tuple[int | None, int | None]]:
        """Bytes of back and front."""
        return [
            (None, None) if position in self.faults else tuple(stamp(self.root / name)[0] for name in names)
            for position, names in enumerate(self.files)
        ]

    def load(self, position: int) -> tuple[Path, Path]:
        """Where back and front lie."""
        back, front = self.files[position]
        return self.root / back, self.root / front

    def attributes(self, position: int) -> dict[str, str]:
        """What the metadata says."""
        return dict(self.labels[position])


def find_picture_files(path: Path) -> Parts:
    """What opens the folders of the splits in a folder or, where it has none of them, the folder itself."""
    folders = {split: path / split for split in SPLITS if (path / split).is_dir()} or {None: path}
    return {split: partial(open_picture_files, folder) for split, folder in folders.items()}


def open_picture_files(folder: Path) -> PictureFiles:
    """The pairs of one folder.

    Raises:
        PairsError: if there are none, or the metadata cannot be used.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for item, view, name in _pictures(folder):
        found.setdefault(item, {}).setdefault(view, []).append(name)
    if not found:
        raise PairsError(
            f"{folder} holds no pairs: put ITEM_back.jpg and ITEM_front.jpg there, or ITEM.jpg in folders"
            " named back and front, or parquet files."
        )
    metadata = read_metadata(folder / METADATA)
    items = sorted(found | metadata)
    names = [found.get(item, {}) for item in items]
    groups, labels = zip(*(metadata.get(item, (item, {})) for item in items))
    pictures = [name for views in names for each in views.values() for name in each]
    return PictureFiles(
        root=folder,
        key=files_key(folder, [folder / name for name in (*pictures, METADATA)]),
        item_ids=items,
        group_ids=list(groups),
        faults={position: fault for position, views in enumerate(names) if (fault := _fault(views))},
        files=[tuple(views[view][0] for view in VIEWS if view in views) for views in names],
        labels=list(labels),
    )


def _pictures(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Item, view and name within the folder of every picture that belongs to a pair."""
    by_view = [view for view in VIEWS if (folder / view).is_dir()]
    for view in by_view:
        for name in _picture_names(folder / view):
            yield Path(name).stem, view, f"{view}/{name}"
    if not by_view:
        for name in _picture_names(folder):
            if match := NAME.fullmatch(Path(name).stem):
                yield match["item"], match["view"], name


def _picture_names(folder: Path) -> list[str]:
    """In order; hidden files are other programs' own."""
    names = [file.name for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(name for name in names if not name.startswith("."))


def _fault(views: dict[str, list[str]]) -> str | None:
    if not views:
        return f"it is in {METADATA} and has no pictures"
    for view in VIEWS:
        if view not in views:
            return f"it has no {view}"
        if len(views[view]) > 1:
            return f"it has more than one {view}, {' and '.join(views[view])}"
    return None


def read_metadata(path: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Group id and labels of each item of a CSV file with the column `item_id`; nothing if there is no such file.

    Raises:
        PairsError: if it is no such file, or an item is in it twice.
    """
    if not path.exists():
        return {}
    metadata = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            columns = list(lines.fieldnames or [])
            if "item_id" not in columns or len(set(columns)) < len(columns):
                raise PairsError(
                    f"{path} has the columns {', '.join(columns)}: name each of them once in the first line, separated"
                    " by commas, and one of them item_id."
                )
            for line in lines:
                item = line.pop("item_id")
                if None in line or not item:
                    fault = "has more fields than the first line" if None in line else "has no item_id"
                    raise PairsError(f"line {lines.line_num} of {path} {fault}: repair it.")
                if item in metadata:
                    raise PairsError(f"{path} has more than one line for the item_id {item}: leave one of them.")
                group = line.pop("group_id", None) or item
                metadata[item] = group, {name: text for name, text in line.items() if text}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairsError(f"{path} cannot be read as a CSV file in UTF-8 ({error}): save it as one.") from error
    return metadata
