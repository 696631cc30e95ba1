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

AVERAGED = "averaged"
"""A value that training does not write: whether the weights are the means of the run's and of an earlier model's."""

PLACES = ("output_dir", "cache_dir")
"""Values of a record that say where something lies, which is nobody's business."""

SOURCE_PATH = "source_path"
"""A value that is never the id of a repository, though it may look like one."""

MODELS = ("base_model", "controlnet")
"""Values that may be ids of repositories, and are told then."""

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


def base_in(record: Mapping[str, Any]) -> str | None:
    """The repository that the `base_model` of [`record_of`] names; `None` if there is none, or it was a folder."""
    base = record.get("base_model")
    return None if base == UNTOLD else base


def with_folders_marked(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values as its record has them: the folder of a model that could be taken for the id of a repository
    begins with `./`, because where the record is read, the folder may not be there."""
    names = {name: values[name] for name in MODELS if values[name] is not None}
    folders = {name: f"./{value}" for name, value in names.items() if may_be_repo_id(value) and Path(value).is_dir()}
    return {**values, **folders}


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in values.items() if name not in (*PLACES, SOURCE_PATH, *MODELS)}
    places = {name: values[name] for name in (SOURCE_PATH, *MODELS) if name in values}
    return told | {
        name: value if value is None or (name in MODELS and _is_repo(value)) else UNTOLD
        for name, value in places.items()
    }


def _is_repo(value: str) -> bool:
    """Whether it may be a repository's id and is no folder here."""
    return may_be_repo_id(value) and not os.path.exists(value)
