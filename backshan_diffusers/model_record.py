"""What a model's folder tells of its training to others: the record that training wrote, without any places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from . import MINI
from .repo_ids import may_be_repo_id

RECORD = "training_config.yaml"

PLACES = ("output_dir", "cache_dir")
"""Values of a record that say where something lies, which is nobody's business."""

PLACES_OR_REPOS = ("source_path", "base_model", "controlnet")
"""Values that may also be ids of repositories, and are told then."""

UNTOLD = "(a folder)"


def is_embedded(folder: Path) -> bool:
    """Whether it is the folder of the embedded model, whose weights are a part of this package."""
    return os.path.samefile(folder, MINI)


def beside(folder: Path, name: str) -> Path | None:
    """A file of a model's folder, or of the stage that wrote it as its `pipeline`; `None` if there is none."""
    places = [folder, folder.parent] if folder.name == "pipeline" else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)


def record_of(folder: Path) -> dict[str, Any]:
    """What the model of a folder was trained with, without the places where its files lay; empty if it is not known.

    Raises:
        ValueError: if the record cannot be read.
    """
    file = beside(folder, RECORD)
    if file is None:
        return {}
    try:
        record = yaml.safe_load(file.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML: repair it, or take it away.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} holds no training config: repair it, or take it away.")
    changes = [change | {"before": _without_places(change["before"])} for change in record.get("accepted", [])]
    return _without_places(record) | ({"accepted": changes} if changes else {})


def repo_in(record: Mapping[str, Any], name: str) -> str | None:
    """The repository that a value of [`record_of`] names; `None` if it names none, or a folder."""
    return None if record.get(name) == UNTOLD else record.get(name)


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in values.items() if name not in (*PLACES, *PLACES_OR_REPOS)}
    return told | {
        name: values[name] and (_repo_or_none(values[name]) or UNTOLD) for name in PLACES_OR_REPOS if name in values
    }


def _repo_or_none(value: str) -> str | None:
    """`value` if it may be a repository's id and is no folder here."""
    return value if may_be_repo_id(value) and not os.path.exists(value) else None
