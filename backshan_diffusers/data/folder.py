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

    def masks(
        self, position: int, files: Mapping[str, Encoded], letterboxes: Mapping[str, Letterbox]
    ) -> dict[str, Image.Image]:
        """Those in the table's columns; one may have fewer or more px than its picture, but the same shape."""
        item_id, masks = self.store.item_ids[position], {}
        for name, file in self.store.masks(position).items():
            try:
                with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as mask:
                    grey = mask.convert("L")
            except Exception as error:  # damaged files make PIL's readers raise nearly anything
                raise UnreadablePairError(item_id, f"its {name} cannot be read") from error
            picture, letterbox = letterboxes[name.partition("_")[0]], Letterbox(grey.size, self.size)
            if not _nearly_equal(letterbox.content_size, picture.content_size):
                raise UnreadablePairError(
                    item_id,
                    f"its {name} has another shape ({_in_px(grey.size)}) than its picture"
                    f" ({_in_px(picture.picture_size)})",
                )
            masks[name] = letterbox.apply_to_mask(grey)
        return masks


def _nearly_equal(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Within the px by which small masks are rounded otherwise than large pictures."""
    return all(abs(a - b) <= 1 for a, b in zip(size, other, strict=True))


def _in_px(size: tuple[int, int]) -> str:
    return "{} x {} px".format(*size)


def open_folder(path: Path, split: str, size: int) -> StoredPairs:
    """One split of the tables at a path or, where there are none, of its picture files."""
    if tables := find_tables(path):
        return open_stored(path, tables, split, size, TablePairs)
    return open_stored(path, find_picture_files(path), split, size)
