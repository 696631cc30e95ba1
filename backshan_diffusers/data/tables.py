"""Pairs in tables: parquet files, read and written, and folders that the library `datasets` has saved."""

from __future__ import annotations

import glob
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import PIL.Image

from .pairs import MASKS, SPLITS, VIEWS, Pairs, PairsError, Skipped, UnreadablePairError, refuse_too_many_more
from .stored import Encoded, Parts, files_key, stamp

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_NAME = re.compile(rf"(?P<split>{'|'.join(SPLITS)})(?![a-zA-Z0-9]).*")
"""Name of a file of a split, as in `train.parquet` or `train-00000-of-00002.parquet`."""

NUMBER_OR_TEXT = re.compile(r"bool|string|large_string|u?int\d+|float\d+")
"""Type of a column whose values are attributes."""


@dataclass(frozen=True)
class PictureTable:
    """Pairs that are rows of a table.

    Args:
        root: the folder or file.
        key: of all files' names, sizes and times of change.
        dataset: with pictures that are not decoded.
    """

    needed: ClassVar[tuple[str, ...]] = VIEWS
    """Columns without which a table is refused."""

    root: Path
    key: str
    dataset: Dataset = field(compare=False, repr=False)

    @cached_property
    def item_ids(self) -> list[str]:
        """Of the column `item_id`; where there is none, the row's number."""
        if "item_id" not in self.dataset.column_names:
            return [f"{row:07d}" for row in range(len(self.dataset))]
        ids = list(map(str, self.dataset["item_id"]))
        item, times = Counter(ids).most_common(1)[0] if ids else ("", 0)
        if times > 1:
            raise PairsError(f"{self.root} has {times} rows with the item_id {item}: give each row one of its own.")
        return ids

    @cached_property
    def group_ids(self) -> list[str]:
        """Of the column `group_id`; where it says nothing, the item's own id."""
        if "group_id" not in self.dataset.column_names:
            return self.item_ids
        return [item if group is None else str(group) for item, group in zip(self.item_ids, self.dataset["group_id"])]

    @cached_property
    def faults(self) -> dict[int, str]:
        """Rows with an empty picture."""
        return {row: f"it has no {VIEWS[pair.index(None)]}" for row, pair in enumerate(self._sizes) if None in pair}

    @cached_property
    def _sizes(self) -> list[tuple[int | None, int | None]]:
        sizes = []
        for batch in self._pictures.with_format("arrow").iter(1000):
            sizes += zip(*(self._sizes_of(batch[view]) for view in VIEWS), strict=True)
        return sizes

    def _sizes_of(self, pictures) -> list[int | None]:
        """Bytes of an arrow column of pictures, without reading them."""
        import pyarrow.compute as pc

        lengths = pc.binary_length(pc.struct_field(pictures, "bytes")).to_pylist()
        paths = pc.struct_field(pictures, "path").to_pylist()
        return [
            stamp(self._file(path))[0] if length is None and path else length for length, path in zip(lengths, paths)
        ]

    def sizes(self) -> Sequence[tuple[int | None, int | None]]:
        """Bytes of back and front."""
        return self._sizes

    def load(self, position: int) -> tuple[Encoded, Encoded]:
        """Back and front: their bytes, or where they lie."""
        row = self._pictures[position]
        back, front = (
            self._file(row[view]["path"]) if row[view]["bytes"] is None else row[view]["bytes"] for view in VIEWS
        )
        return back, front

    def masks(self, position: int) -> dict[str, Encoded]:
        """Those of the schema's masks that are there as pictures, by their column."""
        if not self._masks.column_names:
            return {}
        row = self._masks[position].items()
        return {
            name: self._file(mask["path"]) if mask["bytes"] is None else mask["bytes"]
            for name, mask in row
            if mask is not None
        }

    def attributes(self, position: int) -> dict[str, str | int | float | bool]:
        """Every further column that holds numbers or texts, where it is not empty."""
        if not self._labels.column_names:  # a dataset without columns has no rows either
            return {}
        return {name: value for name, value in self._labels[position].items() if value is not None}

    @cached_property
    def _pictures(self) -> Dataset:
        return self.dataset.select_columns(list(VIEWS))

    @cached_property
    def _masks(self) -> Dataset:
        names = [name for name in MASKS if isinstance(self.dataset.features.get(name), _library().Image)]
        masks = self.dataset.select_columns(names)
        for name in names:
            masks = masks.cast_column(name, _library().Image(decode=False))
        return masks

    @cached_property
    def _labels(self) -> Dataset:
        names = [
            name
            for name, feature in self.dataset.features.items()
            if name not in ("item_id", "group_id")
            and isinstance(feature, _library().Value)
            and NUMBER_OR_TEXT.fullmatch(feature.dtype)
        ]
        return self.dataset.select_columns(names)

    def _file(self, path: str) -> Path:
        return (self.root if self.root.is_dir() else self.root.parent) / path


def find_tables(path: Path, table: type[PictureTable] = PictureTable) -> Parts:
    """What opens the splits of a parquet file, a folder of such files or a saved dataset; nothing if it is neither."""
    if path.is_file():
        return {None: partial(_open_parquet, path, [path], table)}
    if (path / "dataset_dict.json").is_file():
        return {split: partial(_open_saved, path / split, table) for split in _saved_splits(path)}
    if (path / "state.json").is_file():
        return {None: partial(_open_saved, path, table)}
    parts = {split: partial(_open_parquet, path, files, table) for split, files in _parquet_files(path).items()}
    if None in parts and len(parts) > 1:
        raise PairsError(
            f"some parquet files in {path} are named after a split and some are not: name all of them"
            f" {', '.join(SPLITS)}, or none."
        )
    return parts


def _saved_splits(folder: Path) -> list[str]:
    try:
        return json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise _not_saved(folder, error) from error


def _parquet_files(folder: Path) -> dict[str | None, list[Path]]:
    """By the split that is their name or that of their folder."""
    files: dict[str | None, list[Path]] = {}
    for file in sorted((*folder.glob("*.parquet"), *folder.glob("data/*.parquet"))):
        match = SPLIT_NAME.fullmatch(file.name)
        files.setdefault(match["split"] if match else None, []).append(file)
    for split in SPLITS:
        if inside := sorted((folder / split).glob("*.parquet")):
            files.setdefault(split, []).extend(inside)
    return files


def _open_parquet(root: Path, files: list[Path], table: type[PictureTable]) -> PictureTable:
    datasets = _library()
    try:
        # the library reads names as patterns; it keeps a copy of the files in its cache, in a form that it can map
        names = [glob.escape(str(file)) for file in files]
        dataset = datasets.load_dataset("parquet", data_files=names, split="train")
    except Exception as error:  # damaged files make its readers raise nearly anything
        raise PairsError(
            f"{root} holds no rows that can be read as parquet ({_first_line(error)}): write it again."
        ) from error
    return _undecoded(root, files_key(root if root.is_dir() else root.parent, files), dataset, table)


def _open_saved(folder: Path, table: type[PictureTable]) -> PictureTable:
    try:
        dataset = _library().load_from_disk(str(folder))
    except Exception as error:  # damaged files make its readers raise nearly anything
        raise _not_saved(folder, error) from error
    return _undecoded(folder, files_key(folder, list(folder.iterdir())), dataset, table)


def _not_saved(folder: Path, error: Exception) -> PairsError:
    return PairsError(f"{folder} holds no rows that can be read as a dataset ({_first_line(error)}): save it again.")


def _undecoded(root: Path, key: str, dataset: Dataset, table: type[PictureTable]) -> PictureTable:
    if missing := [name for name in table.needed if name not in dataset.column_names]:
        raise PairsError(
            f"{root} has the columns {', '.join(dataset.column_names)}: it also needs {' and '.join(missing)}."
        )
    for view in VIEWS:
        if not _holds_pictures(dataset.features[view]):
            raise PairsError(f"the column {view} of {root} holds {dataset.features[view]}: it must hold pictures.")
        dataset = dataset.cast_column(view, _library().Image(decode=False))
    return table(root, key, dataset)


def _holds_pictures(feature) -> bool:
    """Whether a column's type is that of pictures, of their bytes, of their paths, or of both."""
    if isinstance(feature, dict):
        return feature.keys() == {"bytes", "path"}
    kinds = ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, _library().Image) or feature in map(_library().Value, kinds)


TABLE_BYTES = 400e6
"""What a parquet file holds at most, about: it is read in one piece by those who look at it on the Hub."""


def masks_of(pairs: Pairs) -> list[str]:
    """The masks that the first readable pair has, by their columns."""
    first = next(_readable(pairs, []), {})
    return [mask for mask in MASKS if first.get(mask) is not None]


def write_tables(pairs: Pairs, split: str, folder: Path) -> tuple[int, int]:
    """Write pairs as `SPLIT-00000-of-0000N.parquet`, their pictures and masks as PNG.

    A folder of such files, read as the source `folder`, gives the same rows if it is asked for the same size. Pairs
    that cannot be read are left out.

    Returns:
        How many pairs and how many groups were written.

    Raises:
        PairsError: if a label has values of several types, or more than a few pairs cannot be read.
    """
    datasets = _library()
    names = ("item_id", "group_id", *VIEWS, *masks_of(pairs))
    kinds = {name: datasets.Value("string") for name in ("item_id", "group_id", "attributes")}
    kinds |= {name: datasets.Image() for name in names[2:]}
    skipped: list[Skipped] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in _readable(pairs, skipped):
            yield {"attributes": json.dumps(row["attributes"]), **{name: _cell(row[name]) for name in names}}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        features = datasets.Features(kinds)
        table = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
        refuse_too_many_more(skipped, pairs)
        labels = [json.loads(text) for text in table["attributes"]]
        table = table.remove_columns("attributes")
        for name in dict.fromkeys(name for row in labels for name in row):
            table = _with_label(table, name, [row.get(name) for row in labels])
        count = max(1, math.ceil(table.data.nbytes / TABLE_BYTES))
        for number in range(count):
            shard = table.shard(count, number, contiguous=True)
            shard.to_parquet(str(folder / f"{split}-{number:05d}-of-{count:05d}.parquet"))
        return len(table), len(set(table["group_id"]))


def _readable(pairs: Pairs, skipped: list[Skipped]) -> Iterator[dict]:
    """The rows whose pictures can be read; the others are added to `skipped`."""
    for index in range(len(pairs)):
        try:
            row = pairs[index]
        except UnreadablePairError as error:
            skipped.append(Skipped(error.item_id, error.reason))
            continue
        yield row


def _cell(value: Any) -> Any:
    if not isinstance(value, PIL.Image.Image):
        return value
    encoded = BytesIO()
    value.save(encoded, "PNG")
    return {"bytes": encoded.getvalue(), "path": None}


def _with_label(table: Dataset, name: str, values: list) -> Dataset:
    try:
        return table.add_column(name, values)
    except (TypeError, ValueError) as error:  # pyarrow's are of these kinds
        raise PairsError(
            f"the label {name} has values of several types ({_first_line(error)}): give all of them one."
        ) from error


def _library():
    """The library `datasets`, which takes seconds to import: it is imported where there is a table to be read."""
    try:
        import datasets
    except ImportError as error:
        raise PairsError(
            "parquet files and saved datasets are read by the library datasets: install 'backshan_diffusers[train]'."
        ) from error
    return datasets


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # the library wraps what its readers say
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
