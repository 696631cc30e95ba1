"""A U-Net and its ControlNet with more layers in each block, which compute what they did before.

The deepening of Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer": new layers begin as the
identity, so that a larger model goes on from where a smaller one has come.
"""

from __future__ import annotations

import re

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..models import BackshanControlNetModel
from ..pipelines import BackToFrontPipeline
from .config import check
from .scratch import seeded

KNOWN_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
"""Those of which new layers can begin as the identity."""

_LAYER = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(?:resnets|attentions)\.(\d+)(?=\.)")
_RESIDUAL = re.compile(r"controlnet_down_blocks\.(\d+)(?=\.)")


def grow(pipeline: BackToFrontPipeline, layers: int, seed: int) -> None:
    """Put a U-Net and a ControlNet of `layers` layers per block in the place of a pipeline's.

    Args:
        pipeline: its models are left as they are, and replaced.
        layers: of each block on the way down; those on the way up have one more.
        seed: seeds the weights that have no effect yet.

    Raises:
        ConfigError: if a block has more layers already, they are listed block by block, or they do not just add up.
    """
    config = pipeline.unet.config
    before, scale = config.layers_per_block, config.resnet_out_scale_factor
    check_blocks(config, "layers_per_block")
    check(scale == 1, f"layers_per_block is given, and the base_model scales its layers by {scale}: leave it out.")
    check(before <= layers, f"layers_per_block is {layers} and the base_model has {before}: give as many or more.")
    with seeded(seed):
        unet = UNet2DConditionModel.from_config(config, layers_per_block=layers)
        controlnet = BackshanControlNetModel.from_config(pipeline.controlnet.config, layers_per_block=layers)
    for old, new in ((pipeline.unet, unet), (pipeline.controlnet, controlnet)):
        _take_over(old, new, before, layers)
    pipeline.register_modules(unet=unet, controlnet=controlnet)


def check_blocks(config, field: str) -> None:
    """Refuse a U-Net or a ControlNet with other blocks than are known here, or with as many layers as each likes.

    Args:
        config: of the model.
        field: what is given of a training config, and cannot be.

    Raises:
        ConfigError: if it is so.
    """
    others = {*config.down_block_types, *config.get("up_block_types", ())} - KNOWN_BLOCKS
    check(
        isinstance(config.layers_per_block, int),
        f"{field} is given, and the base_model lists its layers block by block ({config.layers_per_block}): leave it"
        " out.",
    )
    check(not others, f"{field} is given, and the base_model has {', '.join(sorted(others))}: leave it out.")


def _take_over(old: nn.Module, new: nn.Module, before: int, layers: int) -> None:
    """Copy the weights of a model into one with more layers, and let what is left have no effect."""
    residuals = _residual_sources(len(new.down_blocks), before, layers)  # a U-Net has none, and asks for none
    weights, known = new.state_dict(), old.state_dict()
    for name in weights:
        source = _source(name, residuals, before, layers)
        if source is not None:
            weights[name] = known[source]
    new.load_state_dict(weights)
    for direction in ("down_blocks", "up_blocks"):
        for block in getattr(new, direction, ()):
            for place in range(len(block.resnets)):
                if _layer_source(direction, place, before, layers) is None:
                    _silence(block, place)


def _source(name: str, residuals: list[int | None], before: int, layers: int) -> str | None:
    """The name that a weight of the larger model has in the smaller one; None for that of a new layer."""
    if (found := _LAYER.match(name)) is not None:
        place = _layer_source(found[1], int(found[3]), before, layers)
        return None if place is None else f"{name[: found.start(3)]}{place}{name[found.end(3) :]}"
    if (found := _RESIDUAL.match(name)) is not None:
        place = residuals[int(found[1])]
        return None if place is None else f"{name[: found.start(1)]}{place}{name[found.end(1) :]}"
    return name


def _layer_source(direction: str, place: int, before: int, layers: int) -> int | None:
    """Which layer of a block is at this place; None for a new one.

    On the way down new layers come last. What they pass on is what the first layer on the way up takes up, which
    stays first; behind it come the new ones.
    """
    if direction == "down_blocks":
        return place if place < before else None
    if place == 0:
        return 0
    return None if place <= layers - before else place - (layers - before)


def _residual_sources(blocks: int, before: int, layers: int) -> list[int | None]:
    """For each residual on the way down which one it was; None for one more. Those of a block's last layer stay so."""
    sources, taken = [0], 1  # the first is that of the first convolution
    for block in range(blocks):
        kept = [*range(taken, taken + before)]
        sources += [*kept[:-1], *[None] * (layers - before), kept[-1]]
        taken += before
        if block < blocks - 1:
            sources.append(taken)
            taken += 1
    return sources


@torch.no_grad()
def _silence(block: nn.Module, place: int) -> None:
    """Let a layer pass on what it gets; on the way up, what comes from below."""
    resnet: ResnetBlock2D = block.resnets[place]
    resnet.conv2.weight.zero_()
    resnet.conv2.bias.zero_()
    if resnet.conv_shortcut is not None:
        nn.init.dirac_(resnet.conv_shortcut.weight)
        resnet.conv_shortcut.bias.zero_()
    if getattr(block, "attentions", None) is not None:
        block.attentions[place].proj_out.weight.zero_()
        block.attentions[place].proj_out.bias.zero_()
