"""Batches as a function of (seed, stage, step, process): nothing to remember, so nothing to restore on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch

from ..conditioning import control_image, control_tensor
from ..models import BackshanControlNetModel
from ..objective import Objective, timesteps_shifted
from .augmentation import Augmentation, move_mask, move_picture, recolour
from .caching import PairArrays, to_pixels
from .order import LikenessOrder, RandomOrder

CROP_CANDIDATES = 4
"""Random crops of which the most detailed one is learned from."""

DETAIL_PARTS = 18
"""Side of a picture over that of the squares from which detail stands out: 7 px of 128."""

DISTURBED = 4
"""Of so many true fronts, and of as many predicted ones, one is disturbed: a part of them costs a part."""

DISTURBANCE = 0.05
"""Standard deviation of what is added to fronts in [-1, 1], about that of a sensor's noise."""


@dataclass(frozen=True)
class StepSampler:
    """Everything random in one stage on one process.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        process, processes: which process this is, of how many.
    """

    seed: int
    stage: str
    process: int = 0
    processes: int = 1

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A CPU generator that depends on nothing but the run, the step, the process and what it is for."""
        return torch.Generator().manual_seed(self._seed(f"{step} {self.process} {purpose}"))

    def shared_generator(self, step: int, purpose: str) -> torch.Generator:
        """The same one on every process."""
        return torch.Generator().manual_seed(self._seed(f"{step} all {purpose}"))

    def indices(self, step: int, batch_size: int, order: RandomOrder | LikenessOrder) -> np.ndarray:
        """The items of a step on this process. Every epoch is a new order, and no item comes twice in an epoch."""
        total, wanted = order.total, batch_size * self.processes
        start = step * wanted + self.process * batch_size
        positions = range(start, start + batch_size)
        orders = {
            epoch: order(self._seed(f"epoch {epoch}")) for epoch in {position // total for position in positions}
        }
        return np.array([orders[position // total][position % total] for position in positions])

    def _seed(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {self.stage} {name}".encode()).digest()[:7], "big")


class StepPairs:
    """The pairs of one step, changed at random. Each view is made when it is first asked for.

    Args:
        pairs: all of them.
        indices: `B`, those of the step.
        augmentation: what may happen to them.
        sampler: gives the random numbers.
        step: number of the step.
    """

    def __init__(
        self, pairs: PairArrays, indices: np.ndarray, augmentation: Augmentation, sampler: StepSampler, step: int
    ):
        self._pairs, self._side, self.indices = pairs, pairs.fronts.shape[1], indices
        self.flipped = torch.rand(len(indices), generator=sampler.generator(step, "flip")) < augmentation.flip
        self._colour_maps = self._back_moves = self._front_moves = None
        if any(augmentation.colour_jitter):
            self._colour_maps = augmentation.colour_maps(len(indices), sampler.generator(step, "jitter"))
        if any(augmentation.affine):
            moves = augmentation.moves(len(indices), self._side, sampler.generator(step, "affine"))
            self._back_moves, self._front_moves = moves

    @cached_property
    def backs(self) -> np.ndarray:
        """`B x S x S x 3` uint8."""
        return self._changed(self._pairs.backs, self._back_moves)

    @cached_property
    def fronts(self) -> np.ndarray:
        """`B x S x S x 3` uint8."""
        return self._changed(self._pairs.fronts, self._front_moves)

    def pictures(self, view: str, mirror: bool) -> np.ndarray:
        """The `backs` or `fronts`, flipped left-right once more if `mirror`: `B x S x S x 3` uint8."""
        pictures = self.backs if view == "backs" else self.fronts
        return pictures[:, :, ::-1] if mirror else pictures

    def faces(self) -> np.ndarray:
        """`B x S x S` bool: which pixels of the fronts are those of a masked face."""
        return self._mask(self._pairs.faces)

    def weights(self, focus: Mapping[str, float]) -> np.ndarray:
        """`B x S x S` float32: how much each pixel of the fronts counts, 1 where no mask of `focus` touches it and
        the largest of their weights where some do."""
        weights = np.ones((len(self.indices), self._side, self._side), dtype=np.float32)
        for name, weight in focus.items():
            weights[self._mask(self._pairs.masks[name])] = weight
        return weights

    def unseen(self, weight: float) -> np.ndarray:
        """`B x S x S` float32: how much each pixel of the fronts counts for detail that the flipped back lacks.

        From 1, the same detail in its place, it rises with the square of the difference, to nearly `weight` on a thin
        black line where the back is white.
        """
        backs = self.pictures("backs", mirror=True)
        differences = np.abs(detail(self.fronts) - detail(backs)).mean(axis=-1) / 255
        return 1 + (weight - 1) * differences**2

    def _mask(self, packed: np.ndarray) -> np.ndarray:
        mask = np.unpackbits(packed[self.indices], axis=-1, count=self._side)
        return self._each(move_mask, self._flip(mask), self._front_moves).astype(bool)

    def groups(self) -> torch.Tensor:
        """`B` int64, equal where the outfit is equal."""
        return torch.from_numpy(self._pairs.groups[self.indices])

    def _changed(self, pictures: np.ndarray, moves: np.ndarray | None) -> np.ndarray:
        pictures = self._each(move_picture, self._flip(pictures[self.indices]), moves)
        return self._each(recolour, pictures, self._colour_maps)

    def _flip(self, pictures: np.ndarray) -> np.ndarray:
        return np.stack([each[:, ::-1] if flip else each for each, flip in zip(pictures, self.flipped.tolist())])

    @staticmethod
    def _each(change: Callable, pictures: np.ndarray, hows: np.ndarray | None) -> np.ndarray:
        return pictures if hows is None else np.stack([change(each, how) for each, how in zip(pictures, hows)])


def crop_shape(step: int, batch_size: int, crop_sizes: tuple[int, ...]) -> tuple[int, int]:
    """Side of the crops of a step, and how many pairs they come from.

    `batch_size` pairs give the smallest crops; of larger ones there are fewer, so that a step has about as many
    pixels, but at least one pair's.
    """
    side = crop_sizes[step % len(crop_sizes)]
    return side, max(1, batch_size * min(crop_sizes) ** 2 // side**2)


def crop_batch(pairs: StepPairs, crop_size: int, focus: Mapping[str, float], generator: torch.Generator) -> dict:
    """Square crops of the backs and fronts, one of each item: `2B x 3 x crop_size x crop_size` in [-1, 1], and how
    much each of their pixels counts, `2B x 1 x crop_size x crop_size`."""
    backs, weights = pairs.backs, pairs.weights(focus)
    pictures, weights = [*backs, *pairs.fronts], [*np.ones_like(weights), *weights]
    crops = [_detailed_crop(*each, crop_size, generator) for each in zip(pictures, weights, strict=True)]
    pixels, weights = (np.stack(parts) for parts in zip(*crops, strict=True))
    return {"pixels": to_pixels(pixels), "weights": torch.from_numpy(weights)[:, None]}


def _detailed_crop(
    picture: np.ndarray, weights: np.ndarray, crop_size: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Of `CROP_CANDIDATES` random crops of an `S x S x 3` picture and its `S x S` weights the one with most detail, as
    far as it counts; of equals the first.

    Most of a picture is backdrop, from which an autoencoder learns nothing more once it has learned it.
    """
    corners = torch.randint(len(picture) - crop_size + 1, (CROP_CANDIDATES, 2), generator=generator).tolist()
    places = [(slice(top, top + crop_size), slice(left, left + crop_size)) for top, left in corners]
    return max(((picture[place], weights[place]) for place in places), key=lambda crop: _detail(*crop))


def _detail(picture: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum of the absolute differences of neighbouring pixels."""
    values = picture.astype(np.float32)
    down = np.abs(np.diff(values, axis=0)) * weights[1:, :, None]
    right = np.abs(np.diff(values, axis=1)) * weights[:, 1:, None]
    return float(down.sum() + right.sum())


def latent_batch(
    latents: torch.Tensor, prompts: torch.Tensor, places: torch.Tensor, generator: torch.Generator, p: float
) -> dict:
    """A step's front latents with their prompt embeddings, a share `p` of which is the empty prompt's.

    Args:
        latents: `B x C x H x W`, scaled.
        prompts: `N x T x E`; the second is the empty one.
        places: `B` int64, which of them is each item's.
    """
    dropped = torch.rand(len(latents), generator=generator) < p
    return {"latents": latents, "prompts": prompts[places.masked_fill(dropped, 1)]}


def detail(pictures: np.ndarray) -> np.ndarray:
    """What stands out from its surroundings, by how much: lines and dots, and neither colours nor shades.

    Args:
        pictures: `B x S x S x 3` uint8.

    Returns:
        `B x S x S x 3` float32 from -255 to 255: each pixel less the mean of the square of about `S / DETAIL_PARTS`
        pixels a side around it.
    """
    values = pictures.astype(np.float32)
    around = max(1, pictures.shape[1] // (2 * DETAIL_PARTS))
    square = {"ddepth": -1, "ksize": (2 * around + 1,) * 2, "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    counts = cv2.boxFilter(np.ones(pictures.shape[1:3], dtype=np.float32), **square)[..., None]
    return values - np.stack([cv2.boxFilter(each, **square) for each in values]) / counts


def cell_weights(weights: np.ndarray, factor: int) -> torch.Tensor:
    """Weights of a step's latent cells in the loss: the largest of the pixels each of them stands for.

    Args:
        weights: `B x S x S` float32.
        factor: side of a picture over the side of its latents.

    Returns:
        `B x 1 x S/factor x S/factor` float32.
    """
    return torch.nn.functional.max_pool2d(torch.from_numpy(weights)[:, None], factor)


def kept_cells(faces: np.ndarray, factor: int) -> torch.Tensor:
    """Weights of a step's latent cells in the loss: 0 for every cell that a masked face touches, 1 for the others.

    Args:
        faces: `B x S x S` bool.
        factor: side of a picture over the side of its latents.

    Returns:
        `B x 1 x S/factor x S/factor` float32.
    """
    return 1 - cell_weights(faces.astype(np.float32), factor)


def noise_batch(objective: Objective, latents: torch.Tensor, generator: torch.Generator) -> dict:
    """Gaussian noise for a batch's latents, and, where the objective wants another one, for the fronts compared, and
    for those that are predicted first."""
    counts = {"noise": len(latents)}
    if objective.compares_fronts and objective.front_latents != "shared":
        counts["front_noise"] = len(latents)
    shape = latents.shape[1:]
    batch = {name: _noise((count, *shape), objective.noise_offset, generator) for name, count in counts.items()}
    if rolled_out := objective.rolled_out(len(latents)):
        batch["first_noise"] = _noise((rolled_out, *shape), 0, generator)  # as sampling begins
    return batch


def _noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn(*shape[:2], 1, 1, generator=generator) if offset else noise


def disturbance_batch(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """What is added to every `DISTURBED`th of `count` true and of `count` predicted fronts to see how steep a
    discriminator is: `2D x 3 x side x side`."""
    return DISTURBANCE * torch.randn(2 * len(range(0, count, DISTURBED)), 3, side, side, generator=generator)


def timestep_batch(size: int, total: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Timesteps of `size` items, spread evenly over the `total` ones of the schedule, which lowers the variance of the
    loss, and then moved by `shift`, see `timesteps_shifted`. With a generator that all processes share and a size of
    1, one timestep for the whole batch."""
    position = (torch.rand(1, generator=generator) + torch.randperm(size, generator=generator) / size) % 1
    return (timesteps_shifted(position, shift) * total).long().clamp(max=total - 1)  # a share may round to 1


def picture_control_batch(
    pictures: np.ndarray, controlnet: BackshanControlNetModel, mirror: bool, edges: np.ndarray | None = None
) -> torch.Tensor:
    """Control tensors of pictures for a model that reads pictures: `B x K x S x S` in [0, 1].

    Args:
        pictures: `B x S x S x 3` uint8.
        mirror: whether they are flipped left-right first.
        edges: `B x S x S` uint8, those of the pictures after mirroring, if they are known; otherwise they are found
            here.
    """
    config = controlnet.config
    if edges is not None:
        pictures = pictures[:, :, ::-1] if mirror else pictures
        return torch.stack([control_tensor(*each, config.conditioning) for each in zip(pictures, edges, strict=True)])
    thresholds = (config.canny_low_threshold, config.canny_high_threshold)
    return torch.stack([control_image(picture, config.conditioning, mirror, *thresholds) for picture in pictures])


def blank_some(
    controls: torch.Tensor, blank: torch.Tensor, generator: torch.Generator, p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Control tensors of backs with a share `p` of them blanked, and which of them show a back.

    So the model also learns what to do without one.

    Args:
        controls: `B x K x S x S`.
        blank: `1 x K x S x S`, that of a white picture.

    Returns:
        `B x K x S x S`, and `B` booleans that are false where the back is blank.
    """
    shown = torch.rand(len(controls), generator=generator) >= p
    return torch.where(shown[:, None, None, None], controls, blank), shown
