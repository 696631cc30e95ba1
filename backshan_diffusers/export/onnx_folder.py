"""A pipeline as a folder of ONNX files, with a description of what goes into each and what comes out.

The files are written by torch's own exporter and run with ONNX Runtime before anybody else does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..conditioning import CHANNELS_PER_PART, LATENTS, control_latents, picture_latents
from ..files import complete_folder, full_disk_in_words
from ..models.controlnet_backshan import OWN_ARGUMENTS
from ..pipelines import BackToFrontPipeline
from .origin import SOFTWARE, ExportError

DESCRIPTION = "export.json"
PACKAGES = ("onnxscript", "onnx_ir", "onnxruntime")
"""Of the extra `export`; all but the last are what torch's exporter needs."""

TOLERANCE = 1e-4
"""Largest difference to PyTorch, as a part of the output's largest value; with mini it is below 2e-6."""


class _TextEncoder(torch.nn.Module):
    def __init__(self, pipeline: BackToFrontPipeline):
        super().__init__()
        self.text_encoder = pipeline.text_encoder

    def forward(self, *values):
        return self.text_encoder(*values)[0]


class _ControlNet(torch.nn.Module):
    def __init__(self, pipeline: BackToFrontPipeline):
        super().__init__()
        self.controlnet = pipeline.controlnet

    def forward(self, *values):
        downs, mid = self.controlnet(*values, return_dict=False)
        return *downs, mid


class _UNet(torch.nn.Module):
    def __init__(self, pipeline: BackToFrontPipeline):
        super().__init__()
        self.unet = pipeline.unet

    def forward(self, *values):
        latents, timestep, prompt_embeds, *downs, mid = values
        return self.unet(
            *(latents, timestep, prompt_embeds),
            down_block_additional_residuals=downs,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]


class _Decoder(torch.nn.Module):
    """From the latents that denoising ends with to pictures in [0, 1]."""

    def __init__(self, pipeline: BackToFrontPipeline):
        super().__init__()
        self.vae = pipeline.vae

    def forward(self, *values):
        (latents,) = values
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1)


class _Encoder(torch.nn.Module):
    """From pictures in [0, 1] to the control tensor of their latents."""

    def __init__(self, pipeline: BackToFrontPipeline):
        super().__init__()
        self.vae = pipeline.vae

    def forward(self, *values):
        (pictures,) = values
        return control_latents(picture_latents(pictures * 2 - 1, self.vae), pictures.shape[-1])


@dataclass
class Part:
    """One ONNX file, a function of tensors whose first dimension is the batch.

    An output has the name of the input that it becomes in another part.
    """

    name: str
    module: torch.nn.Module
    inputs: list[str]
    outputs: list[str]

    def run(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name, from values among which the inputs are."""
        results = self.module(*(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results if isinstance(results, tuple) else (results,), strict=True))


def export_onnx(pipeline: BackToFrontPipeline, target: Path, origin: dict[str, str]) -> None:
    """Write text encoder, ControlNet, U-Net and the autoencoder's decoder as ONNX files, in float32.

    The autoencoder's encoder is added where the ControlNet reads latents. Beside them lie the tokenizer, the
    scheduler's config, `export.json`, which names every input and output with its type and shape and holds what the
    model records, and a `README.md` that says how the parts make a picture. The batch may be of any size, pictures
    have the size that the model records. A safety checker is not exported.

    Args:
        pipeline: in float32 on the CPU; its ControlNet is a [`BackshanControlNetModel`].
        target: a folder; one that was written by this function is replaced.
        origin: what [`origin_of`] says of the model's folder.

    Raises:
        ExportError: if a package is missing, `target` is something else, or a file does not compute what PyTorch does.
        DiskFullError: if there is no room.
    """
    check_target(target)
    parts = _parts(pipeline)
    with full_disk_in_words(target.parent), torch.no_grad(), complete_folder(target) as pending:
        described, example, trial = {}, _values(pipeline, parts, 2), _values(pipeline, parts, 3)
        for part in tqdm(parts, unit="part", disable=None):
            file = pending / f"{part.name}.onnx"
            _write(part, example, file)
            described[part.name] = _describe_and_try(part, trial, file)
        pipeline.tokenizer.save_pretrained(pending / "tokenizer")
        pipeline.scheduler.save_pretrained(pending / "scheduler")
        recorded = {name: pipeline.controlnet.config[name] for name in OWN_ARGUMENTS}
        description = origin | {"recorded": recorded, "parts": described}
        (pending / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (pending / "README.md").write_text(_readme(description), encoding="utf-8")


def check_target(target: Path) -> None:
    """Refuse to begin without the packages, and to replace what [`export_onnx`] did not write."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX files need {', '.join(missing)}: install the package with its extra, backshan_diffusers[export]."
        )
    if target.exists() and not _is_ours(target):
        raise ExportError(f"{target} exists and was not written by {SOFTWARE}: give another name.")
    if Path.cwd().is_relative_to(os.path.realpath(target)):  # the shell would stay in a folder that is gone
        raise ExportError(f"{target} would be replaced while the command runs in it: run it from another folder.")


def _parts(pipeline: BackToFrontPipeline) -> list[Part]:
    step = ["latents", "timestep", "prompt_embeds"]
    downs = range(len(pipeline.controlnet.controlnet_down_blocks))
    residuals = [*(f"down_residual_{number}" for number in downs), "mid_residual"]
    reads_latents = pipeline.controlnet.config.conditioning == LATENTS
    return [
        *([Part("vae_encoder", _Encoder(pipeline), ["back"], ["control"])] if reads_latents else []),
        Part("text_encoder", _TextEncoder(pipeline), ["input_ids"], ["prompt_embeds"]),
        Part("controlnet", _ControlNet(pipeline), [*step, "control"], residuals),
        Part("unet", _UNet(pipeline), [*step, *residuals], ["prediction"]),
        Part("vae_decoder", _Decoder(pipeline), ["latents"], ["pictures"]),
    ]


def _values(pipeline: BackToFrontPipeline, parts: list[Part], items: int) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one step for so many items, from random ones that differ with their number."""
    random = torch.Generator().manual_seed(items)
    config = pipeline.controlnet.config
    side = config.image_size // pipeline.vae_scale_factor
    length, words = pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.vocab_size
    what, channels = "control", config.conditioning_channels
    if config.conditioning == LATENTS:
        what, channels = "back", CHANNELS_PER_PART  # of which the encoder makes the control tensor
    values = {
        "input_ids": torch.randint(words, (items, length), generator=random),
        "latents": torch.randn((items, config.in_channels, side, side), generator=random),
        "timestep": torch.randint(pipeline.scheduler.config.num_train_timesteps, (items,), generator=random),
        what: torch.rand((items, channels, config.image_size, config.image_size), generator=random),
    }
    for part in parts:
        values |= part.run(values)
    return values


def _write(part: Part, values: dict[str, torch.Tensor], file: Path) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name of the batch is used for several inputs
        program = torch.onnx.export(
            part.module,
            tuple(values[name] for name in part.inputs),
            dynamic_shapes=((batch,) * len(part.inputs),),  # of the one argument *values
            input_names=part.inputs,
            output_names=part.outputs,
            verbose=False,
            dynamo=True,  # as torch 2.9 has it by default
        )
    ClearMetadataAndDocStringPass()(program.model)  # it holds the paths of this machine's source files
    program.save(file)


def _describe_and_try(part: Part, values: dict[str, torch.Tensor], file: Path) -> dict[str, dict]:
    """Types and shapes of what goes in and comes out, from the file; it is run on `values` and has to yield theirs."""
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    results = session.run(part.outputs, {name: values[name].numpy() for name in part.inputs})
    for name, result in zip(part.outputs, results, strict=True):
        wanted = values[name].numpy()
        difference, largest = np.abs(result - wanted).max(), np.abs(wanted).max()
        if not difference <= TOLERANCE * largest:
            raise ExportError(
                f"the exported {part.name} is off by {difference:.1g} where the largest {name} is {largest:.1g}, so it"
                " is not kept: try other versions of torch and onnxscript."
            )
    return {"inputs": _signature(session.get_inputs()), "outputs": _signature(session.get_outputs())}


def _signature(arguments: Sequence) -> dict[str, dict]:
    """`{"latents": {"type": "float", "shape": ["batch", 8, 32, 32]}, ...}`, from what ONNX Runtime says."""
    return {
        argument.name: {"type": argument.type.removeprefix("tensor(").removesuffix(")"), "shape": argument.shape}
        for argument in arguments
    }


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["software"] == SOFTWARE
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _readme(description: dict) -> str:
    """How the parts make a picture, for somebody who has nothing but this folder."""
    recorded = description["recorded"]
    side = recorded["image_size"]
    flip = "flipped left-right, " if recorded["mirror"] else ""
    edges = (
        f" Canny edges (hysteresis thresholds {recorded['canny_low_threshold']} and"
        f" {recorded['canny_high_threshold']} on 8-bit values) are three equal channels."
        if "canny" in recorded["conditioning"]
        else ""
    )
    if recorded["conditioning"] == LATENTS:
        control = f"`back` is that square,\n   {flip}with values from 0 to 1; `vae_encoder` makes `control` of it."
    else:
        control = (
            f"`control` is that square,\n   {flip}as `{recorded['conditioning']}`, with values from 0 to 1.{edges}"
        )
    rows = "\n".join(
        f"| `{name}.onnx` | {kind[:-1]} | `{argument}` | {facts['type']} | {' x '.join(map(str, facts['shape']))} |"
        for name, part in description["parts"].items()
        for kind in ("inputs", "outputs")
        for argument, facts in part[kind].items()
    )
    return f"""# {description["model"]}: front views of clothed people from back views, as ONNX files

Written by {description["software"]} {description["version"]}. Licence of the model: {description["license"]}.
`{DESCRIPTION}` holds for programs what stands here for people.

1. Put the back picture, RGB, on a square of {side} px without changing its aspect ratio. {control}
2. Split the prompt, "{recorded["default_prompt"]}", with the tokenizer in `tokenizer/`, pad the tokens to the length
   of `input_ids`, and run `text_encoder`.
3. Begin with normal random `latents`, times the initial sigma of the scheduler in `scheduler/` (1 for `mini`). At each
   of its timesteps ({recorded["default_num_inference_steps"]} by default) run `controlnet` on them, scaled if the
   scheduler does that, then `unet` with what came out, and let the scheduler make the next `latents` of the
   `prediction`. With a guidance above 1 (the default is {recorded["default_guidance_scale"]:g}) both run for an empty
   prompt as well; the prediction is then that one's plus the guidance times the difference of the two.
4. `vae_decoder` makes `pictures`, RGB with values from 0 to 1, of the last `latents`.

| file | | name | type | shape |
|---|---|---|---|---|
{rows}
"""
