"""Checkpoints of a stage: written beside, renamed when complete, found again by step."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a stage's folder, oldest first."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if name.isdigit())


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int = 2) -> Path:
    """Save everything the accelerator was told of, then drop all but the newest `keep` checkpoints."""
    pending, final = folder / f"checkpoint-{step}.tmp", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(pending, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(pending))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        pending.rename(final)
        for old in checkpoint_steps(folder)[:-keep]:
            shutil.rmtree(folder / f"checkpoint-{old}")
    accelerator.wait_for_everyone()
    return final


def load_newest_checkpoint(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest complete checkpoint, if there is one; returns the number of steps that are done."""
    steps = checkpoint_steps(folder)
    if not steps:
        return 0
    accelerator.load_state(str(folder / f"checkpoint-{steps[-1]}"))
    return steps[-1]
