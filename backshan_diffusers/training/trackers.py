"""Where a stage's log goes besides its file: to TensorBoard or Weights & Biases, through accelerate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

from .config import ConfigError

_INSTALLED = {"none": lambda: True, "tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ConfigError: if it is not.
    """
    if not _INSTALLED[name]():
        raise ConfigError(f"report_to is {name}, which is not installed: run `pip install {name}`, or give none.")


def tracker_arguments(name: str, folder: Path) -> dict:
    """What an `Accelerator` has to be made with, so that it can report to that tracker from a stage's folder."""
    if name == "none":
        return {}
    return {"log_with": name, "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder))}


@contextmanager
def tracking(accelerator: Accelerator, folder: Path, step: int, values: dict) -> Iterator[None]:
    """Within, what the engine is given to log also goes to the trackers it was made with.

    A resumed stage goes on in the run it began. What it logged after `step` comes once more: TensorBoard is told to
    forget the first, Weights & Biases keeps it and ignores the second, which is the same.

    Args:
        accelerator: made with `tracker_arguments`.
        folder: of the stage, in the folder of its run.
        step: the last one that is done.
        values: what the stage is trained with.
    """
    wandb = {
        "dir": str(folder),
        "name": f"{folder.parent.name}/{folder.name}",
        "id": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
        "resume": "allow",
        "config": values,
    }
    # TensorBoard takes the project's name for a folder in that of the stage.
    project = "backshan" if "wandb" in map(str, accelerator.log_with) else "tensorboard"
    accelerator.init_trackers(project, init_kwargs={"tensorboard": {"purge_step": step + 1}, "wandb": wandb})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
