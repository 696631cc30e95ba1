"""How caches are kept: their keys, their locks, and tensors in shards that processes share out."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ...files import complete_file
from ..config import ConfigError

SHARD = 256
"""Items whose tensors are computed and kept together."""

LEFTOVER_AGE = 24 * 60 * 60
"""Seconds after which an unfinished file belongs to a run that was killed and has not come back."""

_logger = logging.getLogger(__name__)


def cache_shards(
    items: Sequence,
    compute: Callable[[Sequence], torch.Tensor],
    folder: Path,
    accelerator: Accelerator,
    key: str,
    name: str,
    title: str,
) -> list[torch.Tensor]:
    """What is computed of each item, in shards of `SHARD` items, shared out among the processes; shards that are there
    are kept.

    Args:
        items: `N` of them.
        compute: gives a tensor whose first dimension is as long as the items that it gets.
        folder: where caches live.
        accelerator: knows the processes; all of them call this function.
        key: names all that the tensors depend on.
        name: what is computed, in the files' names and of the tensor in each of them.
        title: what the progress bar says.

    Returns:
        One tensor for each shard. They are maps of the files: what is not read takes no memory.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    paths = [folder / f"{key}-{name}-{start:07d}.safetensors" for start in range(0, len(items), SHARD)]
    mine = range(accelerator.process_index, len(paths), accelerator.num_processes)
    with alone(folder, key) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()  # until this run has these shards for itself
        missing = {
            paths[shard]: items[shard * SHARD : (shard + 1) * SHARD]
            for shard in mine
            if not _is_whole(paths[shard], name)
        }
        left = sum(map(len, missing.values()))
        with tqdm(total=left, desc=title, unit=" items", disable=not left) as progress:
            for path, some in missing.items():
                tensor = compute(some)
                with writing_in(folder), complete_file(path) as pending:
                    save_file({name: tensor.contiguous()}, pending)
                progress.update(len(some))
        accelerator.wait_for_everyone()
    return [load_file(path)[name] for path in paths]


def _is_whole(path: Path, name: str) -> bool:
    """Whether a shard is there and as long as its header says."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as shard:
            return name in shard.keys()  # noqa: SIM118 (no mapping)
    except SafetensorError:
        _logger.warning("the cached %s %s are damaged: they are made anew.", name, path)
        return False


@contextmanager
def alone(folder: Path, key: str) -> Iterator[None]:
    """Keep other runs from making what `key` names while this one does."""
    lock = FileLock(folder / f".{key}.lock")
    with writing_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(folder, key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.warning("another run fills the cache %s with what this one needs: it is waited for.", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Within, what the disk refuses becomes one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"the cache {folder} cannot be written ({reason}): make room there, or give another cache_dir, and run"
            " the same command again."
        ) from error


def _drop_leftovers(folder: Path, key: str) -> None:
    """Remove unfinished files that nobody has touched for `LEFTOVER_AGE`, but for what `key` can go on from."""
    for path in (*folder.glob("*.tmp"), *folder.glob(".unfinished-*")):
        with suppress(FileNotFoundError):  # another run may clean up too
            if key not in path.name and time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                path.unlink()


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def key_of(*parts) -> str:
    """A short hash of what a cache depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
