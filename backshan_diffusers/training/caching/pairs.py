"""Pairs as arrays on disk."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...data import Pairs, PairsError
from ...data.arrays import CHUNK, read_arrays
from ...data.checking import read_usable, summary
from ...data.pairs import MASKS, Skipped, refuse_too_many_more
from ...faces import masking_key, read_masked_arrays
from ...files import complete_file
from .storage import alone, key_of, writing_in

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairArrays:
    """Pictures of `N` pairs as arrays that stay on disk until they are read.

    Args:
        backs: `N x S x S x 3` uint8.
        fronts: `N x S x S x 3` uint8.
        groups: `N` int64, equal where the outfit is equal.
        key: what the arrays depend on, as a short hash.
        faces: `N x S x ceil(S / 8)` uint8, eight pixels in a byte: which of the fronts' are masked. None: none are.
        masks: the same for each mask of the fronts that was asked for, by its column.
    """

    backs: np.ndarray
    fronts: np.ndarray
    groups: np.ndarray
    key: str
    faces: np.ndarray | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)


def cache_pairs(
    rows: Pairs, folder: Path, workers: int, mask_face: str = "none", masks: Sequence[str] = ()
) -> PairArrays:
    """Draw or read pairs once; later calls with the same rows open what is there.

    Pairs that cannot be read are left out; which they are is written to `KEY-check.txt` in the folder. Its first line,
    the counts, is logged too.

    Args:
        rows: what `load_pairs` gives.
        folder: where caches live.
        workers: processes that make pictures.
        mask_face: what is done to the faces of the fronts, one of [`~backshan_diffusers.faces.FACE_MASKINGS`].
        masks: columns of masks that are kept too.

    Raises:
        ConfigError: if the folder cannot be written.
        PairsError: if more than a few pairs cannot be read, or a pair lacks one of the masks.
        FaceDetectorMissing: if a front has no face mask, and no detector is installed.
    """
    masks = [name for name in MASKS if name in masks]  # one cache, in whatever order they are asked for
    key = key_of("pairs-4", rows.key, masking_key(mask_face), *masks)
    names = ["backs", "fronts", "groups", *masks] + ["faces"] * (mask_face != "none")
    paths = {name: folder / f"{key}-{name}.npy" for name in names} | {"labels": _labels_path(folder, key)}
    arrays = _open_arrays(paths, rows.size)
    if arrays is None:
        with alone(folder, key):
            arrays = _open_arrays(paths, rows.size)  # another run may just have made them
            if arrays is None:
                read = partial(read_arrays, masks=masks)
                if mask_face != "none":
                    read = partial(read_masked_arrays, mask_face=mask_face, masks=masks)
                arrays = _make_pairs(paths, folder / f"{key}-check.txt", rows, workers, read)
    kept = {name: arrays.pop(name) for name in masks}
    return PairArrays(**arrays, key=key, masks=kept)


def rows_key(rows: Pairs) -> str:
    """A short hash that is another one where the rows are: by their source's files, or by the code that draws them."""
    return key_of(rows.key)


def read_attributes(pairs: PairArrays, folder: Path) -> list[dict]:
    """The attributes of each of the pairs that `cache_pairs` put in the folder."""
    return [labels["attributes"] for labels in _read_labels(pairs, folder)]


def read_item_ids(pairs: PairArrays, folder: Path) -> list[str]:
    """The same for what the source calls each of them."""
    return [labels["item_id"] for labels in _read_labels(pairs, folder)]


def _read_labels(pairs: PairArrays, folder: Path) -> list[dict]:
    lines = _labels_path(folder, pairs.key).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _labels_path(folder: Path, key: str) -> Path:
    return folder / f"{key}-labels.jsonl"


def _row_shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Shape of what each array of a cache of pairs holds for one pair."""
    packed = (size, -(-size // 8))
    pictures = {"backs": (size, size, 3), "fronts": (size, size, 3), "groups": ()}
    return pictures | dict.fromkeys(MASKS, packed) | {"faces": packed}


def _open_arrays(paths: dict[str, Path], size: int) -> dict[str, np.ndarray] | None:
    """The arrays of a cache of pairs by name; None if one is missing, cut off or of another shape."""
    try:
        arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items() if path.suffix == ".npy"}
        lines = paths["labels"].read_bytes().count(b"\n")
    except (OSError, ValueError, EOFError):
        return None
    shapes = _row_shapes(size)
    count = len(arrays["groups"])
    fits = all(array.shape == (count, *shapes[name]) for name, array in arrays.items())
    return arrays if fits and lines == count else None


def _make_pairs(
    paths: dict[str, Path], report: Path, rows: Pairs, workers: int, read: Callable[[Pairs], tuple]
) -> dict[str, np.ndarray]:
    if any(path.exists() for path in paths.values()):
        _logger.warning("the cached pairs %s are damaged: they are made anew.", paths["groups"])
    _write_pairs(paths, report, rows, workers, read)
    counts, *left_out = report.read_text(encoding="utf-8").splitlines()
    if left_out:
        _logger.warning("%s They are listed in %s.", counts, report)
    else:
        _logger.info("%s", counts)
    arrays = _open_arrays(paths, rows.size)
    if "faces" in arrays:
        total, found = len(arrays["faces"]), int(arrays["faces"].any(axis=(1, 2)).sum())
        if found < total:
            _logger.warning("%d of %d fronts show no face: they stay as they are.", total - found, total)
    return arrays


def _write_pairs(
    paths: dict[str, Path], report: Path, rows: Pairs, workers: int, read: Callable[[Pairs], tuple]
) -> None:
    folder = report.parent
    with writing_in(folder):
        unfinished = _UnfinishedPairs(paths, rows.size)
    left = rows[CHUNK * len(unfinished.chunks) :]
    for made, _, bad in read_usable(left, workers, read) if len(left) else ():
        with writing_in(folder):
            unfinished.append(made, bad)
        try:
            refuse_too_many_more(unfinished.skipped(), rows)
        except PairsError:
            unfinished.discard()
            raise
    with writing_in(folder):
        found = replace(rows.findings, skipped=(*rows.findings.skipped, *unfinished.skipped()))
        report.write_text(summary(unfinished.rows(), found) + "\n", encoding="utf-8")
        unfinished.finish()


class _UnfinishedPairs:
    """Arrays that grow on disk, and a journal of what they hold: one line for each chunk of rows, its group ids and
    the pairs that are left out.

    What a killed run has written is kept, as far as the journal tells of it.

    Args:
        paths: where the arrays go in the end, by name, in the order in which `append` gets them; `groups` among them.
        size: side of the pictures in px.
    """

    def __init__(self, paths: dict[str, Path], size: int):
        self.paths = paths
        self.pending = {name: path.with_suffix(".tmp") for name, path in paths.items() if path.suffix == ".npy"}
        shapes = _row_shapes(size)
        self.row_shapes = {name: shapes[name] for name in self.pending if name != "groups"}
        self.chunks = self._read_journal()
        lines = [json.dumps(chunk) + "\n" for chunk in self.chunks]
        self.pending["groups"].write_text("".join(lines), encoding="utf-8")
        for name, shape in self.row_shapes.items():
            self._write_header(name)
            os.truncate(self.pending[name], _file_size((self.rows(), *shape)))

    def append(self, made: tuple | None, bad: list[Skipped]) -> None:
        """Add a chunk. The journal comes last, so that what it names is on the disk.

        Args:
            made: backs, fronts, group ids, labels and then the masks; None if no pair can be used.
            bad: the pairs that are left out.
        """
        backs, fronts, group_ids, labels, *masks = made or (None, None, [], [])
        for name, array in zip(self.row_shapes, (backs, fronts, *masks), strict=True) if made else ():
            _append(self.pending[name], array.tobytes())
        skipped = [[each.item_id, each.reason] for each in bad]
        chunk = {"groups": group_ids, "labels": labels, "skipped": skipped}
        _append(self.pending["groups"], (json.dumps(chunk) + "\n").encode())
        self.chunks.append(chunk)

    def finish(self) -> None:
        """Give the arrays their names."""
        for name in self.row_shapes:
            self._write_header(name)
            os.replace(self.pending[name], self.paths[name])
        with complete_file(self.paths["labels"]) as path:
            lines = [json.dumps(each) + "\n" for chunk in self.chunks for each in chunk["labels"]]
            path.write_text("".join(lines), encoding="utf-8")
        every = [group_id for chunk in self.chunks for group_id in chunk["groups"]]
        with complete_file(self.paths["groups"]) as path, open(path, "wb") as file:
            np.save(file, np.unique(every, return_inverse=True)[1].astype(np.int64))
        self.pending["groups"].unlink()

    def discard(self) -> None:
        """Remove what was written so far."""
        for path in self.pending.values():
            path.unlink()

    def rows(self) -> int:
        """How many pairs are there."""
        return sum(len(chunk["groups"]) for chunk in self.chunks)

    def skipped(self) -> list[Skipped]:
        """The pairs that were left out."""
        return [Skipped(*each) for chunk in self.chunks for each in chunk["skipped"]]

    def _read_journal(self) -> list[dict]:
        try:
            lines = self.pending["groups"].read_text(encoding="utf-8").splitlines(keepends=True)
            chunks = [json.loads(line) for line in lines if line.endswith("\n")]
            rows = sum(len(chunk["groups"]) for chunk in chunks)
            sizes = {name: self.pending[name].stat().st_size for name in self.row_shapes}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return []
        whole = all(sizes[name] >= _file_size((rows, *shape)) for name, shape in self.row_shapes.items())
        return chunks if whole else []

    def _write_header(self, name: str) -> None:
        self.pending[name].touch()
        with open(self.pending[name], "r+b") as file:
            file.write(_header((self.rows(), *self.row_shapes[name])))


def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 begins with; NumPy leaves room in it for any number of rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _file_size(shape: tuple[int, ...]) -> int:
    """Bytes of a .npy file of uint8."""
    return len(_header(shape)) + math.prod(shape)


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
