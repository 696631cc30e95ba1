"""`valid`: renderings of the dressed people of the Validated Avatar Library for Inclusion and Diversity."""

from pathlib import Path
from typing import ClassVar

from .stored import StoredPairs, open_stored
from .tables import PictureTable, find_tables


class ValidTable(PictureTable):
    """Its `group_id` is avatar and colouring: the rows of a group differ in pose, light and background."""

    needed: ClassVar = ("item_id", "group_id", "back", "front", "person", "gender", "outfit_class")


def open_valid(path: Path, split: str, size: int) -> StoredPairs:
    """One split of the folder with the parquet files."""
    return open_stored(path, find_tables(path, ValidTable), split, size)
