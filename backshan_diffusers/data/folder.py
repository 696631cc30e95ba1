"""`folder`: pairs of one's own, as picture files or in tables."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..pictures import Letterbox
from .pairs import UnreadablePairError
from .picture_files import find_picture_files
from .stored import Encoded, StoredPairs, open_stored
from .tables import find_tables


class TablePairs(StoredPairs):
    """A table may hold masks."""

    def masks(self, position: int, files: Mapping[str, Encoded]) -> dict[str, Image.Image]:
        """Those in the table's columns."""
        masks = {}
        for name, file in self.store.masks(position).items():
            try:
                with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as mask:
                    masks[name] = Letterbox(mask.size, self.size).apply_to_mask(mask.convert("L"))
            except Exception as error:  # damaged files make PIL's readers raise nearly anything
                raise UnreadablePairError(self.store.item_ids[position], f"its {name} cannot be read") from error
        return masks


def open_folder(path: Path, split: str, size: int) -> StoredPairs:
    """One split of the tables at a path or, where there are none, of its picture files."""
    if tables := find_tables(path):
        return open_stored(path, tables, split, size, TablePairs)
    return open_stored(path, find_picture_files(path), split, size)
