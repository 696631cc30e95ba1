"""`lpc`: drawn characters of the Liberated Pixel Cup, transparent where nobody stands."""

from collections.abc import Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from PIL import Image

from ..pictures import Letterbox
from .stored import Encoded, StoredPairs, open_stored
from .tables import PictureTable, find_tables

PERSON_LAYERS = ("body", "head", "eyes", "hair")
"""Folders of art that are not worn."""


class LpcTable(PictureTable):
    """Its column `layers` names the art from bottom to top, as in `torso/clothes/longsleeve/male/orange.png`."""

    needed: ClassVar = ("item_id", "back", "front", "sex", "layers")

    @cached_property
    def _layers(self) -> list[list[str]]:
        return list(self.dataset["layers"])

    @cached_property
    def group_ids(self) -> list[str]:
        """What is worn, on whatever body and under whatever hair."""
        return [" ".join(layer for layer in row if _folder(layer) not in PERSON_LAYERS) for row in self._layers]

    def attributes(self, position: int) -> dict[str, str]:
        """`sex`, and for each folder of art what of it is drawn, from bottom to top."""
        drawn: dict[str, list[str]] = {}
        for layer in self._layers[position]:
            drawn.setdefault(_folder(layer), []).append(layer.partition("/")[2].removesuffix(".png"))
        return super().attributes(position) | {folder: ", ".join(names) for folder, names in drawn.items()}


class LpcPairs(StoredPairs):
    """Where a picture is not transparent is the person."""

    def masks(
        self, position: int, files: Mapping[str, Encoded], letterboxes: Mapping[str, Letterbox]
    ) -> dict[str, Image.Image]:
        """The person masks; nothing else is known of a pixel."""
        return {f"{view}_person": _opacity(file, self.size) for view, file in files.items()}


def _opacity(file: Encoded, side: int) -> Image.Image:
    with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as picture:
        opacity = picture.convert("RGBA").getchannel("A")
    return Letterbox(opacity.size, side).apply_to_mask(opacity)


def _folder(layer: str) -> str:
    return layer.partition("/")[0]


def open_lpc(path: Path, split: str, size: int) -> StoredPairs:
    """One split of the folder with the parquet files."""
    return open_stored(path, find_tables(path, LpcTable), split, size, LpcPairs)
