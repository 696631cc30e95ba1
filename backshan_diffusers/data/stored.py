"""Pairs whose pictures lie on disk: which of them belong to a split, and how one becomes a row."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..pictures import MINIMUM_SIDE, Letterbox, PictureError, load_picture, pixels_to_decode
from .identical import join_groups, label_pictures
from .pairs import COLUMNS, SPLITS, VIEWS, Findings, PairsError, Skipped, UnreadablePairError, refuse_too_many

READING = 1  # raised whenever the same files give other rows, so that no cache outlives the code that filled it

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Shares of the groups where a source does not say to which split a pair belongs."""

Encoded = bytes | Path
"""A picture file: its bytes, or where it lies."""


class Store(Protocol):
    """Pairs in the form in which they are kept. Equal stores have equal hashes and hold the same.

    Args:
        root: where it is.
        key: a text that is another one whenever a file is another one.
        item_ids: one for each pair, all different.
        group_ids: one for each pair.
        faults: for each pair that is not complete, by its position, what is wrong.
    """

    root: Path
    key: str
    item_ids: Sequence[str]
    group_ids: Sequence[str]
    faults: Mapping[int, str]

    def sizes(self) -> Sequence[tuple[int | None, int | None]]:
        """Bytes of back and front of each pair; `None` where there is none."""

    def load(self, position: int) -> tuple[Encoded, Encoded]:
        """Back and front of a complete pair."""

    def attributes(self, position: int) -> dict[str, str | int | float | bool]:
        """Labels of a pair."""


Parts = Mapping[str | None, Callable[[], Store]]
"""What opens each split, by its name; under `None` alone what opens pairs that are not split."""


@dataclass(frozen=True)
class StoredPairs:
    """Rows from a store.

    Args:
        store: holds the pictures.
        size: side of the rows' pictures in px.
        key: a text that is another one whenever a row would hold anything else.
        positions: in the store, of each row.
        group_ids: of each row.
        findings: what was left out.
    """

    store: Store
    size: int
    key: str
    positions: Sequence[int]
    group_ids: Sequence[str]
    findings: Findings

    @property
    def capacity(self) -> int:
        """How many rows there are."""
        return len(self.positions)

    def row(self, index: int) -> dict:
        """One pair with the columns of the schema.

        Raises:
            UnreadablePairError: if one of its pictures cannot be read.
        """
        position = self.positions[index]
        item_id, files = self.store.item_ids[position], dict(zip(VIEWS, self.store.load(position), strict=True))
        row = dict.fromkeys(COLUMNS)
        row |= {"item_id": item_id, "group_id": self.group_ids[index], "attributes": self.store.attributes(position)}
        letterboxes = {}
        for view, file in files.items():
            try:
                picture = load_picture(file, pixels_to_decode(self.size, restore_size=False))
            except (PictureError, OSError) as error:
                raise UnreadablePairError(item_id, f"its {view} cannot be read, {str(error).rstrip('.')}") from error
            letterboxes[view] = Letterbox(picture.size, self.size)
            row[view] = letterboxes[view].apply(picture)
        return row | self.masks(position, files, letterboxes)

    def masks(
        self, position: int, files: Mapping[str, Encoded], letterboxes: Mapping[str, Letterbox]
    ) -> dict[str, Image.Image]:
        """The masks that there are of a pair of the store, by their column; here none.

        Args:
            position: in the store.
            files: of the two views.
            letterboxes: that their pictures, upright, went through.
        """
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.store.root)!r}, {self.size} px)"


def open_stored(path: Path, parts: Parts, split: str, size: int, reader: type[StoredPairs] = StoredPairs):
    """The rows of one split.

    Args:
        path: what the caller asked for, for messages.
        parts: what there is.
        split: `train`, `validation` or `test`.
        size: side of the rows' pictures in px.
        reader: makes the rows.

    Raises:
        PairsError: if there is no such split, nothing in it, or more wrong with it than a few pairs.
    """
    if not parts:
        raise PairsError(f"{path} holds no parquet files and no saved dataset: give the folder with them.")
    if isinstance(size, bool) or not isinstance(size, int) or size < MINIMUM_SIDE:
        raise PairsError(f"size must be a whole number of at least {MINIMUM_SIDE} px, not {size!r}.")
    if None not in parts and split not in parts:
        raise PairsError(f"{path} has no split {split!r}, only {', '.join(parts)}: add it, or choose one of these.")
    store = parts[split if split in parts else None]()
    catalogue = _catalogue(store)
    members = range(len(store.item_ids))
    if split not in parts:
        members = [member for member in members if split_of(catalogue.group_ids[member]) == split]
    if not members:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in SHARES.items())
        raise PairsError(
            f"no pair of {path} falls into {split}: a hash shares out its groups ({shares}), and it has only"
            f" {len(set(catalogue.group_ids))}, so add pairs, or split them yourself as {', '.join(SPLITS)}."
        )
    return _rows(store, catalogue, members, f"{READING} {split}", size, reader)


def split_of(group_id: str) -> str:
    """The split of a group where a source does not say it: a function of the id alone."""
    draw = int.from_bytes(hashlib.sha256(group_id.encode()).digest()[:8], "big") / 2**64
    if draw < SHARES["train"]:
        return "train"
    return "validation" if draw < SHARES["train"] + SHARES["validation"] else "test"


@dataclass(frozen=True)
class _Catalogue:
    """What is known of every pair of a store before a picture is decoded.

    Args:
        group_ids: with groups that share a picture joined.
        faults: by position, what is wrong.
        repeated: positions of pairs whose two files an earlier pair holds.
    """

    group_ids: Sequence[str]
    faults: Mapping[int, str]
    repeated: frozenset[int]


@lru_cache(maxsize=4)  # a training run opens the same splits again for every stage
def _catalogue(store: Store) -> _Catalogue:
    faults, labels = dict(store.faults), label_pictures(store)
    first, repeated = {}, set()
    for position, pair in enumerate(labels):
        if None in pair:  # a file without an equal, or a pair that is not complete
            continue
        if pair[0] == pair[1]:
            faults[position] = "its back and its front are the same file"
        elif first.setdefault(pair, position) != position:
            repeated.add(position)
    whole = [pair if position not in faults else (None, None) for position, pair in enumerate(labels)]
    return _Catalogue(join_groups(store.group_ids, whole), faults, frozenset(repeated))


def _rows(store: Store, catalogue: _Catalogue, members: Sequence[int], key: str, size: int, reader) -> StoredPairs:
    faults = {member: catalogue.faults[member] for member in members if member in catalogue.faults}
    skipped = tuple(Skipped(store.item_ids[member], fault) for member, fault in faults.items())
    refuse_too_many(skipped, len(members))
    repeated = [member for member in members if member in catalogue.repeated]
    kept = [member for member in members if member not in faults and member not in catalogue.repeated]
    groups_before, groups = ({ids[member] for member in members} for ids in (store.group_ids, catalogue.group_ids))
    findings = Findings(
        skipped,
        tuple(store.item_ids[member] for member in repeated),
        len(groups_before) - len(groups),
        len(members),
    )
    key = f"{reader.__name__} {key} {size} {store.key}"
    return reader(store, size, key, kept, [catalogue.group_ids[member] for member in kept], findings)


def files_key(root: Path, files: Sequence[Path]) -> str:
    """A hash of the files' names below `root`, sizes and times of change: reading all their bytes would take long."""
    listed = sorted((str(file.relative_to(root)), *stamp(file)) for file in files)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def stamp(file: Path) -> tuple[int, int]:
    """Bytes and time of change in ns of a file; zeros if it cannot be reached, such as the end of a broken link."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
