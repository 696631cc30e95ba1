"""A U-Net and its ControlNet with wider levels, which compute nearly what they did before.

The widening of Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer": a new channel begins as a
copy of an old one, and whatever reads both reads a part of each, so that a larger model goes on from where a smaller
one has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ..models import BackshanControlNetModel
from ..pipelines import BackToFrontPipeline
from .config import check
from .growth import check_blocks
from .scratch import seeded

SMALLEST_SHARE = 0.5
"""The shares of copies are drawn from this to 1 more, and then made to add up. Copies that counted alike would learn
alike, and stay copies."""


def widen(pipeline: BackToFrontPipeline, widths: Sequence[int], seed: int) -> None:
    """Put a U-Net and a ControlNet of these widths in the place of a pipeline's.

    What they compute changes a little where a norm sees its channels in other shares than before: in a level whose
    width is no multiple of the one before, and on the way up, where channels from below and from beside are normalised
    together, if the ones have grown more than the others. All else stays as it was.

    Args:
        pipeline: its models are left as they are, and replaced.
        widths: channels of each level, from latent resolution down. Levels that attend, and the last, keep theirs.
        seed: seeds how much each copy counts.

    Raises:
        ConfigError: if these cannot be the widths, or the models are of a kind that cannot be widened so.
    """
    config = pipeline.unet.config
    for model in (pipeline.unet, pipeline.controlnet):
        _check_kind(model.config)
    check(
        config.norm_num_groups == pipeline.controlnet.config.norm_num_groups,
        "block_out_channels is given, and the U-Net and the ControlNet of base_model have norms of different groups:"
        " leave it out.",
    )
    _check_widths(config, widths)
    with seeded(seed):
        unet = UNet2DConditionModel.from_config(config, block_out_channels=tuple(widths))
        controlnet = BackshanControlNetModel.from_config(pipeline.controlnet.config, block_out_channels=tuple(widths))
        for old, new in ((pipeline.unet, unet), (pipeline.controlnet, controlnet)):
            _take_over(old, new)
    pipeline.register_modules(unet=unet, controlnet=controlnet)


def _check_kind(config) -> None:
    """Refuse a U-Net or a ControlNet whose layers are not those that are known here."""
    check_blocks(config, "block_out_channels")
    for name, known in (
        ("resnet_time_scale_shift", "default"),
        ("time_embedding_type", "positional"),
        ("time_embedding_dim", None),
        ("freq_shift", 0),
    ):
        check(
            config.get(name, known) == known,
            f"block_out_channels is given, and the base_model has the {name} {config.get(name)}: leave it out.",
        )


def _check_widths(config, widths: Sequence[int]) -> None:
    """Refuse widths that the levels cannot have."""
    before, given = tuple(config.block_out_channels), f"block_out_channels is {list(widths)}"
    check(
        len(widths) == len(before) and all(old <= new for old, new in zip(before, widths)),
        f"{given} and the base_model has {list(before)}: give a width for each level, as large or larger.",
    )
    check(
        widths[0] % before[0] == 0,
        f"{given}: give a multiple of {before[0]} for the first level, whose width is that of the time's frequencies.",
    )
    groups = config.norm_num_groups
    check(all(width % groups == 0 for width in widths), f"{given}: give multiples of {groups}, the groups of a norm.")
    kinds = [*zip(config.down_block_types, reversed(config.up_block_types))]
    attends = [kind != ("DownBlock2D", "UpBlock2D") for kind in kinds[:-1]] + [True]
    for level, (fixed, old, new) in enumerate(zip(attends, before, widths), start=1):
        check(
            old == new or not fixed, f"{given}: level {level} attends, or the middle on it does, so leave it at {old}."
        )
    for level, (old, new) in enumerate(zip(pairwise(before), pairwise(widths)), start=1):
        check(
            new[0] != new[1] or old[0] == old[1],
            f"{given}: levels {level} and {level + 1} would have one width and lose the layer between them, so give"
            " different ones.",
        )


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Fill the weights of a wider model from those of a narrower one."""
    groups, known, weights = old.config.norm_num_groups, old.state_dict(), new.state_dict()
    before, after = (_joined(model.config.block_out_channels, model.config.layers_per_block) for model in (old, new))
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".")
        value = known[name] if name in known else _passing_on(layer, kind, known)
        outputs, inputs = (
            _sources(value.shape[axis : axis + 1], weight.shape[axis : axis + 1], groups) for axis in (0, 1)
        )
        if layer in before:
            inputs = _sources(before[layer], after[layer], groups)
        if layer == "time_embedding.linear_1" and kind == "weight":
            weights[name] = _among_more_frequencies(value[outputs], weight.shape[1])
        elif value.ndim > 1:
            weights[name] = _shared_out(value[outputs], inputs)
        else:
            weights[name] = value[inputs if layer.endswith("norm1") and layer in before else outputs]
    new.load_state_dict(weights)


def _joined(widths: Sequence[int], layers: int) -> dict[str, tuple[int, int]]:
    """Of each layer that reads what comes from below and from beside on the way up: how many channels of each."""
    beside = [widths[0]]  # what the first convolution passes over
    for level, width in enumerate(widths):
        beside += [width] * (layers + (level < len(widths) - 1))
    joined, below = {}, widths[-1]
    for block, width in enumerate(reversed(widths)):
        for place in range(layers + 1):
            parts = below, beside.pop()
            for layer in ("norm1", "conv1", "conv_shortcut"):
                joined[f"up_blocks.{block}.resnets.{place}.{layer}"] = parts
            below = width
    return joined


def _passing_on(layer: str, kind: str, known: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights with which a shortcut that only the wider model has does nothing in the narrower one."""
    width = known[f"{layer.rpartition('.')[0]}.conv1.weight"].shape[1]
    return torch.eye(width)[:, :, None, None] if kind == "weight" else torch.zeros(width)


def _sources(before: Sequence[int], after: Sequence[int], groups: int) -> torch.Tensor:
    """Which old channel each new one is a copy of, where channels of several origins stand one behind another.

    The copies stand beside what they are copies of, so that a norm's group has those of the same channels as before.
    """
    parts, start = [], 0
    for old, new in zip(before, after, strict=True):
        chunks = groups if old != new else 1
        within = torch.arange(new // chunks) * (old // chunks) // (new // chunks)
        parts.append(start + (torch.arange(chunks)[:, None] * (old // chunks) + within).flatten())
        start += old
    return torch.cat(parts) if parts else torch.arange(0)


def _shared_out(value: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Weights `O x I x ...` for inputs of which some are copies: those of the copies of one add up to what it had."""
    if len(sources) == value.shape[1]:
        return value
    copied = value[:, sources]
    shares = SMALLEST_SHARE + torch.rand_like(copied)
    return copied * shares / torch.zeros_like(value).index_add(1, sources, shares)[:, sources]


def _among_more_frequencies(value: torch.Tensor, count: int) -> torch.Tensor:
    """Weights `O x F` of frequencies for `count` ones, in which the old ones lie at even distances: `O x count`."""
    spread = torch.zeros(len(value), count)
    spread[:, :: count // value.shape[1]] = value
    return spread
