"""A ControlNet in the layout it was first published in, which Stable Diffusion web UIs and ComfyUI load.

The layout is that of the class `ControlNet` in `cldm/cldm.py` of the repository lllyasviel/ControlNet, under the name
`control_model` that it has in the published files. diffusers reads it: see `ControlNetModel.from_single_file`.
"""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

from diffusers import ControlNetModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..conditioning import CHANNELS_PER_PART
from ..files import clear_unfinished, complete_file, full_disk_in_words
from ..folder_check import INDEX, check_controlnet, stored_variant
from ..models import BackshanControlNetModel
from ..models.controlnet_backshan import OWN_ARGUMENTS
from .origin import SOFTWARE, ExportError

SUFFIX = ".safetensors"
PREFIX = "control_model."

SHAPE = {
    name: parameter.default
    for name, parameter in inspect.signature(ControlNetModel).parameters.items()
    if name != "conditioning_channels"  # judged by itself
} | {"cross_attention_dim": 768}
"""Config of a ControlNet for Stable Diffusion 1.5: diffusers' defaults but for the width of the text encoder."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block; those of an attention block have the same names in both layouts."""


def load_stored_controlnet(folder: Path) -> BackshanControlNetModel:
    """The ControlNet of a saved pipeline, or one that was saved alone, in the type of its file.

    Raises:
        OSError: in one sentence, if the folder holds none, or a damaged one.
        ExportError: if it is a stock one, which does not record what it reads.
    """
    home = folder / "controlnet" if (folder / INDEX).is_file() else folder
    check_controlnet(home)
    with safe_open(next(iter(sorted(home.glob("*.safetensors")))), "pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    try:
        return BackshanControlNetModel.from_pretrained(home, dtype=dtype, variant=stored_variant(home))
    except Exception as error:  # files that do not fit each other make the reader raise nearly anything
        raise ExportError(f"the ControlNet in {home} cannot be loaded: {' '.join(str(error).split())}") from error


def export_controlnet(controlnet: BackshanControlNetModel, target: Path, origin: dict[str, str]) -> None:
    """Write one file for web UIs and ComfyUI; every value is that of the model, in the model's type.

    What the model records, and where it comes from, stands in the file's header. These tools read neither: the picture
    has to be flipped by hand if the model says `mirror`.

    Args:
        controlnet: of the shape of Stable Diffusion 1.5, with a condition of 3 channels.
        target: a name that ends with `.safetensors`; a file that was written by this function is replaced.
        origin: what [`origin_of`] says of the model's folder.

    Raises:
        ExportError: if these tools could not load the model or would misread it, or if `target` is no name for it.
        DiskFullError: if there is no room.
    """
    check_loadable(controlnet)
    check_target(target)
    weights = controlnet.state_dict()
    renamed = {new: weights[name].contiguous() for name, new in original_names(controlnet).items()}
    recorded = {name: controlnet.config[name] for name in OWN_ARGUMENTS}
    metadata = {name: str(value) for name, value in (origin | recorded).items()}
    with full_disk_in_words(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(target.parent)
        with complete_file(target) as pending:
            save_file(renamed, pending, {"format": "pt"} | metadata)


def check_loadable(controlnet: BackshanControlNetModel) -> None:
    """Refuse what web UIs and ComfyUI cannot load, or could load but not use.

    They take the width of the first convolution from the file, but the picture that they hand over is always RGB.
    """
    config = controlnet.config
    if config.conditioning_channels != CHANNELS_PER_PART:
        raise ExportError(
            f"web UIs and ComfyUI hand a ControlNet a picture of {CHANNELS_PER_PART} channels, and"
            f" {config.conditioning} has {config.conditioning_channels}: export a model that reads canny or rgb alone."
        )
    differing = [name for name, value in SHAPE.items() if _plain(config[name]) != _plain(value)]
    if differing:
        raise ExportError(
            "this layout is for ControlNets of the shape of Stable Diffusion 1.5, and this one has another"
            f" {', '.join(differing)}: export it as onnx, or train one with a base model of that shape."
        )


def check_target(target: Path) -> None:
    """Refuse a name that would be misread, and to replace what [`export_controlnet`] did not write."""
    if target.suffix != SUFFIX:
        raise ExportError(f"{target} does not end with {SUFFIX}, by which tools know such files: add that.")
    if "shuffle" in target.stem.lower():
        raise ExportError(
            f"{target.name} has shuffle in its name, by which tools know a kind of ControlNet that pools the picture:"
            " give another name."
        )
    if target.exists() and not _is_ours(target):
        raise ExportError(f"{target} exists and was not written by {SOFTWARE}: give another name.")


def original_names(controlnet: ControlNetModel) -> dict[str, str]:
    """The name in the original layout for the name of each weight, whatever the number of blocks and layers."""
    places = _places(controlnet)
    names = {}
    for name in controlnet.state_dict():
        part = next(part for part in places if name.startswith(f"{part}."))
        layer, _, rest = name[len(part) + 1 :].partition(".")
        if ".resnets." in part:
            layer = RESNET[layer]
        names[name] = PREFIX + ".".join(filter(None, (places[part], layer, rest)))
    return names


def _places(controlnet: ControlNetModel) -> dict[str, str]:
    """Where each part of the model stands in the original layout, which numbers layers through all blocks."""
    places = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "controlnet_mid_block": "middle_block_out.0",
    }
    number = itertools.count(1)
    for index, block in enumerate(controlnet.down_blocks):
        for layer in range(len(block.resnets)):
            place = f"input_blocks.{next(number)}"
            places[f"down_blocks.{index}.resnets.{layer}"] = f"{place}.0"
            places[f"down_blocks.{index}.attentions.{layer}"] = f"{place}.1"
        if block.downsamplers is not None:
            places[f"down_blocks.{index}.downsamplers.0.conv"] = f"input_blocks.{next(number)}.0.op"
    for index in range(len(controlnet.controlnet_down_blocks)):
        places[f"controlnet_down_blocks.{index}"] = f"zero_convs.{index}.0"
    between = [f"blocks.{index}" for index in range(len(controlnet.controlnet_cond_embedding.blocks))]
    for index, layer in enumerate(["conv_in", *between, "conv_out"]):  # every second layer is an activation
        places[f"controlnet_cond_embedding.{layer}"] = f"input_hint_block.{2 * index}"
    return places


def _plain(value):
    """A config that was read from JSON has lists where defaults are tuples."""
    return list(value) if isinstance(value, tuple) else value


def _is_ours(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get("software") == SOFTWARE
    except (SafetensorError, OSError):
        return False
