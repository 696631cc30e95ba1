"""`folder`: pairs of one's own, as picture files or in tables."""

from pathlib import Path

from .picture_files import find_picture_files
from .stored import StoredPairs, open_stored
from .tables import find_tables


def open_folder(path: Path, split: str, size: int) -> StoredPairs:
    """One split of the tables at a path or, where there are none, of its picture files."""
    return open_stored(path, find_tables(path) or find_picture_files(path), split, size)
