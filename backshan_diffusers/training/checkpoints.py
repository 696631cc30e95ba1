"""Checkpoints of a stage: written beside, renamed when complete, and checked before anything is read from them.

A checkpoint holds tensors as safetensors, everything else as JSON, and a manifest with the size and the SHA-256 of
each file. Nothing in it is unpickled, so one that comes from somebody else cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VALUES = "values.json"
"""What the states hold besides tensors, and where in them each tensor belongs."""


class Stateful(Protocol):
    """A model, an optimizer, a schedule: what can tell its state and take it back."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict): ...


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a stage's folder, oldest first; whether they are sound is not looked at."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if name.isdigit())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or would be."""
    return folder / f"checkpoint-{step}"


def save_checkpoint(folder: Path, step: int, states: Mapping[str, Stateful], keep: int) -> None:
    """Write the states, then drop all but the newest `keep` checkpoints up to `step`. For one process only.

    Checkpoints of later steps are dropped too: the stage went on without them because they were not sound.
    """
    final = checkpoint_path(folder, step)
    pending = final.with_name(f"{final.name}.tmp")
    pending.mkdir()
    try:
        _write_states(pending, states)
        _write_manifest(pending)
        _discard(final)
        pending.rename(final)
    finally:
        shutil.rmtree(pending, ignore_errors=True)  # of a full disk above all
    older = [each for each in checkpoint_steps(folder) if each <= step]
    for each in set(checkpoint_steps(folder)) - set(older[-keep:]):
        _discard(checkpoint_path(folder, each))


def load_checkpoint(path: Path, states: Mapping[str, Stateful]) -> None:
    """Give the states back what `save_checkpoint` wrote to `path`; whether it is sound was looked at before."""
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    for name, state in states.items():
        state.load_state_dict(_put_together(values[name], load_file(_tensor_file(path, name)), {}))


def newest_sound_step(folder: Path) -> int:
    """Step of the newest checkpoint that is as it was written, 0 if there is none; newer ones are warned of."""
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        damage = find_damage(checkpoint_path(folder, step))
        if damage is None:
            return step
        logger.warning("%s is damaged and left out: %s.", checkpoint_path(folder, step), damage)
    if steps:
        logger.warning("No checkpoint in %s can be used: the stage begins anew.", folder)
    return 0


def find_damage(path: Path) -> str | None:
    """What makes a checkpoint other than it was written, in words; None if nothing does."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if VALUES not in manifest:
            return f"{MANIFEST} lists no {VALUES}"
        for name, written in manifest.items():
            if (size := (path / name).stat().st_size) != written["bytes"]:
                return f"{name} has {size:,} bytes instead of {written['bytes']:,}"
            if _sha256(path / name) != written["sha256"]:
                return f"{name} holds other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:  # such as a file that stands in the checkpoint's place
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove what killed saves and removals left in a stage's folder."""
    for path in folder.glob("checkpoint-*.tmp"):
        _remove(path)


def _write_states(folder: Path, states: Mapping[str, Stateful]) -> None:
    values = {}
    for name, state in states.items():
        tensors: dict[str, torch.Tensor] = {}
        values[name] = _take_apart(state.state_dict(), name, tensors, {})
        save_file(tensors, _tensor_file(folder, name))
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def _write_manifest(folder: Path) -> None:
    files = sorted(folder.iterdir())
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _take_apart(value: Any, place: str, tensors: dict[str, torch.Tensor], places: dict[int, str]) -> Any:
    """`value` in a form that JSON can hold and that keeps what JSON does not tell apart; tensors go to `tensors`.

    `places` says where a tensor went by its id: one that comes again is not written again, which safetensors refuses.
    """
    if isinstance(value, torch.Tensor):
        if id(value) not in places:
            places[id(value)] = place
            tensors[place] = value.detach().cpu().contiguous()
        # Sums and products of a tensor that lies otherwise in memory may be rounded otherwise.
        return {"tensor": places[id(value)], "stride": value.stride()}
    if isinstance(value, dict):
        parts = [[key, _take_apart(each, f"{place}.{key}", tensors, places)] for key, each in value.items()]
        return {"dict": parts}
    if isinstance(value, list | tuple):
        parts = [_take_apart(each, f"{place}.{index}", tensors, places) for index, each in enumerate(value)]
        return {type(value).__name__: parts}
    return value


def _put_together(value: Any, tensors: dict[str, torch.Tensor], made: dict[str, torch.Tensor]) -> Any:
    """What `_take_apart` was given: one tensor in several places is one again, which `made` keeps by its place."""
    match value:
        case {"tensor": place, "stride": stride}:
            if place not in made:
                tensor = tensors[place]
                made[place] = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
            return made[place]
        case {"dict": items}:
            return {key: _put_together(each, tensors, made) for key, each in items}
        case {"list": parts}:
            return [_put_together(each, tensors, made) for each in parts]
        case {"tuple": parts}:
            return tuple(_put_together(each, tensors, made) for each in parts)
    return value


def _tensor_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _discard(path: Path) -> None:
    """Remove a checkpoint, such that what a kill leaves of it is not taken for one."""
    if path.exists():
        removed = path.with_name(f"{path.name}.removed.tmp")
        path.rename(removed)
        _remove(removed)


def _remove(path: Path) -> None:
    """A checkpoint, or the file or link that somebody has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
