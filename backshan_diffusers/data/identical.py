"""Picture files that are the same byte for byte: which they are, and which groups they make one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from .stored import Encoded, Store

Labels = tuple[bytes | None, bytes | None]
"""Of a pair's back and front: equal for files with the same bytes, `None` for a file that has no equal."""


def label_pictures(store: Store) -> list[Labels]:
    """Labels of all pairs. Only files with as many bytes as another one are read."""
    sizes = store.sizes()
    times = Counter(size for pair in sizes for size in pair if size)
    labels = []
    # a bar only where it takes long: most often there is little to read
    for position, pair in enumerate(tqdm(sizes, desc="looking for identical pictures", unit="pair", delay=2)):
        alike = [times[size] > 1 for size in pair]
        files = store.load(position) if any(alike) and position not in store.faults else (None, None)
        labels.append(tuple(_digest(file) if file and same else None for file, same in zip(files, alike)))
    return labels


def _digest(file: Encoded) -> bytes | None:
    if isinstance(file, bytes):
        return hashlib.sha256(file).digest()
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:  # reported when the picture is read
        return None


def join_groups(group_ids: Sequence[str], labels: Sequence[Labels]) -> list[str]:
    """The groups with those made one that share a picture; it has the id that comes first in the alphabet."""
    parent = {group: group for group in group_ids}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    owner = {}
    for group, pair in zip(group_ids, labels, strict=True):
        for label in pair:
            if label is not None:
                first, last = sorted((root(group), root(owner.setdefault(label, group))))
                parent[last] = first
    return [root(group) for group in group_ids]
