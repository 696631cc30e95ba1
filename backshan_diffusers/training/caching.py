"""Pairs and latents computed once, kept on disk under a name that says what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data import Pairs
from ..data.arrays import read_arrays, read_chunks
from ..files import complete_file

SHARD = 256
"""Pictures whose latents are computed and kept together."""


@dataclass(frozen=True)
class PairArrays:
    """Pictures of `N` pairs as arrays that stay on disk until they are read.

    Args:
        backs: `N x S x S x 3` uint8.
        fronts: `N x S x S x 3` uint8.
        groups: `N` int64, equal where the outfit is equal.
        key: what the arrays depend on, as a short hash.
    """

    backs: np.ndarray
    fronts: np.ndarray
    groups: np.ndarray
    key: str


def cache_pairs(rows: Pairs, folder: Path, workers: int) -> PairArrays:
    """Draw or read pairs once; later calls with the same rows open what is there.

    Args:
        rows: what `load_pairs` gives.
        folder: where caches live; one run at a time may use it.
        workers: processes that make pictures.
    """
    key = _key("pairs-2", rows.key)
    paths = {name: folder / f"{key}-{name}.npy" for name in ("backs", "fronts", "groups")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        _write_pairs(paths, rows, workers)
    opened = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    return PairArrays(**opened, key=key)


def _write_pairs(paths: dict[str, Path], rows: Pairs, workers: int) -> None:
    pending = {name: path.with_suffix(".tmp") for name, path in paths.items()}
    shape = (len(rows), rows.size, rows.size, 3)
    backs = np.lib.format.open_memmap(pending["backs"], mode="w+", dtype=np.uint8, shape=shape)
    fronts = np.lib.format.open_memmap(pending["fronts"], mode="w+", dtype=np.uint8, shape=shape)
    group_ids = []
    for chunk_backs, chunk_fronts, chunk_groups in read_chunks(read_arrays, rows, workers, "pairs"):
        place = slice(len(group_ids), len(group_ids) + len(chunk_groups))
        backs[place], fronts[place] = chunk_backs, chunk_fronts
        group_ids += chunk_groups
    with open(pending["groups"], "wb") as file:
        np.save(file, np.unique(group_ids, return_inverse=True)[1].astype(np.int64))
    backs.flush()
    fronts.flush()
    for name, path in paths.items():
        os.replace(pending[name], path)


def cache_latents(pairs: PairArrays, vae: AutoencoderKL, folder: Path, accelerator: Accelerator) -> torch.Tensor:
    """Scaled VAE latents of every front, computed once for these pairs and these weights.

    They are computed in shards of `SHARD` pictures, shared out among the processes; shards that are there are kept.

    Returns:
        `N x C x H x W` float32: the posterior's mean times the scaling factor.
    """
    key = _key("latents-1", pairs.key, vae.config.scaling_factor, _fingerprint(vae))
    paths = [folder / f"{key}-{start:07d}.safetensors" for start in range(0, len(pairs.fronts), SHARD)]
    mine = range(accelerator.process_index, len(paths), accelerator.num_processes)
    missing = [shard for shard in mine if not paths[shard].exists()]
    for shard in tqdm(missing, desc="front latents", unit=f"{SHARD} pictures", disable=not missing):
        pictures = pairs.fronts[shard * SHARD : (shard + 1) * SHARD]
        save_atomically({"latents": _encode(pictures, vae) * vae.config.scaling_factor}, paths[shard])
    accelerator.wait_for_everyone()
    return torch.cat([load_file(path)["latents"] for path in paths])


@torch.no_grad()
def _encode(pictures: np.ndarray, vae: AutoencoderKL, batch_size: int = 32) -> torch.Tensor:
    batches = [to_pixels(pictures[start : start + batch_size]) for start in range(0, len(pictures), batch_size)]
    return torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mean.cpu() for batch in batches])


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """`B x H x W x 3` uint8 to `B x 3 x H x W` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write safetensors beside `path` and rename, so that a reader sees all of it or nothing."""
    with complete_file(path) as pending:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, pending)


def _fingerprint(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
