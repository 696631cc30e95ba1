"""What a stage was trained with, beside its checkpoints; and the refusal to go on with something else."""

from __future__ import annotations

import logging
import platform
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..files import write_text
from ..model_record import MODELS, RECORD
from ..objective import Objective
from .config import ConfigError, TrainingConfig, check
from .trainer import decay_begins

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")
CHANGEABLE = (
    "output_dir",
    "cache_dir",
    "source_path",
    "accept_changes",
    "stages",
    "validation_pairs",
    "report_to",
    "log_every",
    "probe_every",
    "checkpoint_every",
    "checkpoints_total_limit",
    "validate_every",
    "gradient_checkpointing",
)
"""Values that no weight depends on: which pairs lie in `source_path` is told by `pairs_key`."""


def write_record(folder: Path, values: dict) -> None:
    """Write `values` and the versions of the packages that matter."""
    packages = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
    text = yaml.safe_dump({**values, "packages": packages}, sort_keys=False)
    write_text(folder / RECORD, text)


def check_record(folder: Path, values: dict, steps_done: int | None) -> list[dict]:
    """Refuse to go on with a stage that was begun with other values, unless these say `accept_changes`.

    Args:
        folder: of the stage.
        values: what it would be trained with now.
        steps_done: steps of its newest checkpoint, or None if the stage is finished. Until the learning rate begins
            to fall, `max_steps` may still change.

    Returns:
        What was accepted so far, from the first change on: the step after which it holds, as `step`, and as `before`
        the values until then by their dotted names.

    Raises:
        ConfigError: naming the values that differ.
    """
    path = folder / RECORD
    if not path.exists():
        if steps_done != 0:
            raise ConfigError(
                f"{folder} was trained without {RECORD}, so with nobody knows what: give another output_dir."
            )
        return []
    recorded = _read(path)
    before, now = _defaults() | _flat(recorded), _flat(yaml.safe_load(yaml.safe_dump(values)))
    changed = {
        name: before.get(name)
        for name, value in now.items()
        if value != before.get(name) and not _may_change(name, value, before.get(name), steps_done)
    }
    accepted = recorded.get("accepted", []) if steps_done else []  # a stage that begins anew has no other steps
    if not changed:
        return accepted
    changes = [f"{name} {value!r}, not {now[name]!r}" for name, value in changed.items()]
    found = f"{folder} was trained with {', and '.join(changes)}"
    if not values["accept_changes"]:
        raise ConfigError(
            f"{found}: give another output_dir, remove that folder and those of the stages after it to train them"
            " again, or go on from what is there with --accept_changes true."
        )
    logger.warning("%s: it goes on all the same, as accept_changes says.", found)
    return [*accepted, {"step": steps_done, "before": changed}] if steps_done else []


def _read(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    check(
        isinstance(values, dict),
        f"{path} is damaged, so that nobody knows what was trained there: give another output_dir, or remove"
        f" {path.parent}.",
    )
    return values


def _flat(values: dict, prefix: str = "") -> dict:
    """The values by their dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _defaults() -> dict:
    """What an older version did where its record lacks a field, by dotted names: the field came later, and its default
    changes nothing."""
    known = {"": TrainingConfig, "objective.": Objective}
    return {
        f"{prefix}{entry.name}": list(entry.default) if isinstance(entry.default, tuple) else entry.default
        for prefix, of in known.items()
        for entry in fields(of)
        if entry.default is not MISSING
    }


def _may_change(name: str, value: Any, before: Any, steps_done: int | None) -> bool:
    """Whether a stage may go on with another value as if nothing were."""
    if name == "max_steps":
        return steps_done is not None and steps_done <= decay_begins(min(value, before))
    if name in MODELS and None not in (value, before):
        return Path(value) == Path(before)  # an older record has no `./` before a folder
    return name.partition(".")[0] in CHANGEABLE or (name == "processes" and steps_done is None)
