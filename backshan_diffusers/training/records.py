"""What a stage was trained with, beside its checkpoints; and the refusal to go on with something else."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import yaml

from ..files import write_text
from .config import ConfigError
from .trainer import decay_begins

FILE = "training_config.yaml"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")
CHANGEABLE = (
    "output_dir",
    "cache_dir",
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
"""Values that no weight depends on."""


def write_record(folder: Path, values: dict) -> None:
    """Write `values` and the versions of the packages that matter."""
    packages = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
    text = yaml.safe_dump({**values, "packages": packages}, sort_keys=False)
    write_text(folder / FILE, text)


def check_record(folder: Path, values: dict, steps_done: int | None) -> None:
    """Refuse to go on with a stage that was begun with other values.

    Args:
        folder: of the stage.
        values: what it would be trained with now.
        steps_done: steps of its newest checkpoint, or None if the stage is finished. Until the learning rate begins
            to fall, `max_steps` may still change.

    Raises:
        ConfigError: naming the first value that differs.
    """
    path = folder / FILE
    if not path.exists():
        if steps_done != 0:
            raise ConfigError(
                f"{folder} was trained without {FILE}, so with nobody knows what: give another output_dir."
            )
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in yaml.safe_load(yaml.safe_dump(values)).items():
        if name in CHANGEABLE or value == before.get(name):
            continue
        if name == "max_steps" and steps_done is not None and steps_done <= decay_begins(min(value, before[name])):
            continue
        if name == "processes" and steps_done is None:
            continue
        raise ConfigError(
            f"{folder} was trained with {name} {before.get(name)!r}, not {value!r}: give another output_dir, or remove"
            f" that folder and those of the stages after it to train them again."
        )
