"""What a run would train and what that takes: weights, memory and the cost of a step, counted without a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..pipelines import BackToFrontPipeline
from .batches import StepPairs, StepSampler
from .caching import PairArrays
from .config import TrainingConfig
from .order import RandomOrder
from .run import TrainingRun
from .savings import optimizer_bytes, save_activations
from .stage_module import Batch, StageModule, learning


@dataclass(frozen=True)
class StageNeeds:
    """What a stage takes on each process. Bytes leave out activations, pictures and what the libraries need.

    Args:
        name: of the stage.
        trained: number of weights that learn, by component.
        weight_bytes: of every component, learning or not, but for the text encoder, which leaves.
        gradient_bytes: of what learns.
        optimizer_bytes: AdamW's two moments of what learns.
        average_bytes: averages of what learns.
        step_flops: floating-point operations of the matrix products, convolutions and attentions of one step, forward
            and backward; a multiplication with its addition counts as two. Fused attention computes one product anew
            on the way back, which is left out. Of crops of several sizes: the mean.
    """

    name: str
    trained: dict[str, int]
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    step_flops: int

    @property
    def total_bytes(self) -> int:
        """All of them together."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes


@dataclass(frozen=True)
class RunNeeds:
    """What a run takes: number of weights by component, and the needs of each stage."""

    weights: dict[str, int]
    stages: list[StageNeeds]


class Rehearsal(TrainingRun):
    """A run that makes its batches of nothing: they have the right shapes, and no model is asked for them."""

    def _latents(self, config, pipeline: BackToFrontPipeline, *which) -> Callable[[StepPairs], torch.Tensor]:
        side = pipeline.controlnet.config.image_size // pipeline.vae_scale_factor
        shape = pipeline.vae.config.latent_channels, side, side
        return lambda step_pairs: torch.zeros(len(step_pairs.indices), *shape)

    def _edges(self, config, controlnet, pairs: PairArrays, *which) -> Callable[[StepPairs], None]:
        return lambda step_pairs: None  # those of black pictures are found at once

    def _blank_control(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        recorded = pipeline.controlnet.config
        return torch.zeros(1, recorded.conditioning_channels, recorded.image_size, recorded.image_size)

    def _prompts(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        return torch.zeros(2, pipeline.tokenizer.model_max_length, pipeline.unet.config.cross_attention_dim)

    def _captions(self, pipeline: BackToFrontPipeline, pairs: PairArrays) -> tuple[torch.Tensor, torch.Tensor]:
        return self._prompts(pipeline), torch.zeros(len(pairs.backs), dtype=torch.int64)  # there are no labels

    def _order(self, config, pairs: PairArrays) -> RandomOrder:
        return RandomOrder(len(pairs.backs))  # there are no labels by which they could be alike


def rehearse(config: TrainingConfig) -> RunNeeds:
    """Open what the run begins with, check its source, and count; nothing is trained, drawn or written.

    The steps are run through on torch's meta device, which knows shapes and no values, so that a large model costs no
    more than a small one.

    Raises:
        ConfigError: as the run itself would before its first step.
    """
    run = Rehearsal(config)
    pipeline = run.start(None)
    run.pairs(pipeline.controlnet.config.image_size)
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for model in models.values():
        model.to("meta")
    weights = {name: _count(model.parameters()) for name, model in models.items()}
    # a copy for each stage, which changes it; on the meta device it takes no memory
    return RunNeeds(weights, [_needs(run, name, copy.deepcopy(pipeline)) for name in config.stage_names()])


def _needs(run: Rehearsal, name: str, pipeline: BackToFrontPipeline) -> StageNeeds:
    config = run.config.stage(name)
    module, make_batch = run.build_stage(name, pipeline, _blank_pairs(pipeline, config))
    module.to("meta")
    if config.gradient_checkpointing:
        save_activations(module)
    sampler, steps = StepSampler(config.seed, name), len(config.crop_sizes) if name == "vae" else 1
    flops = [step_flops(module, _on_meta(make_batch(step, sampler)), config) for step in range(steps)]
    weights = learning(module)
    models = dict(module.named_trained())
    run.make_room(pipeline, module)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return StageNeeds(
        name,
        {part: _count(learning(model)) for part, model in models.items()},
        weight_bytes=sum(_bytes(part.parameters()) for part in parts),
        gradient_bytes=_bytes(weights),
        optimizer_bytes=optimizer_bytes(weights, config.optimizer),
        average_bytes=_bytes(weights),
        step_flops=sum(flops) // steps,
    )


def step_flops(module: StageModule, batch: Batch, config: TrainingConfig) -> int:
    """Floating-point operations of the losses of a step's micro-batches, all like `batch`, and of their gradients."""
    with FlopCounterMode(display=False) as counter:
        if config.cached_contrast:
            module.compare([batch])
        module(batch)["loss"].backward()
    return counter.get_total_flops() * config.gradient_accumulation_steps


def _blank_pairs(pipeline: BackToFrontPipeline, config: TrainingConfig) -> PairArrays:
    """A batch of black pictures whose masks are empty."""
    count, side = config.batch_size, pipeline.controlnet.config.image_size
    pictures = np.zeros((count, side, side, 3), dtype=np.uint8)
    masks = dict.fromkeys(config.focus(), np.packbits(np.zeros((count, side, side), dtype=bool), axis=-1))
    return PairArrays(pictures, pictures, np.arange(count), "blank", masks=masks)


def _on_meta(batch: Batch) -> Batch:
    return {name: tensor.to("meta") for name, tensor in batch.items()}


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def describe(needs: RunNeeds) -> str:
    """The needs of a run as a table."""
    rows = [["weights, those that learn", "all", *(stage.name for stage in needs.stages)]]
    for name in dict.fromkeys([*needs.weights, *(part for stage in needs.stages for part in stage.trained)]):
        counts = [needs.weights.get(name, 0), *(stage.trained.get(name, 0) for stage in needs.stages)]
        rows.append([name, *map(_in_millions, counts)])
    rows.append(["memory on each process", "", *(stage.name for stage in needs.stages)])
    for text, field in (
        ("weights", "weight_bytes"),
        ("gradients", "gradient_bytes"),
        ("AdamW's moments", "optimizer_bytes"),
        ("averaged weights", "average_bytes"),
        ("together", "total_bytes"),
    ):
        rows.append([text, "", *(f"{getattr(stage, field) / 2**20:.1f} MiB" for stage in needs.stages)])
    rows.append(["a step on each process", "", *(f"{stage.step_flops / 1e9:.2f} GFLOP" for stage in needs.stages)])
    lines = [f"{row[0]:26}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows]
    return "\n".join([*lines, "Not counted: activations, which grow with batch_size, pictures, and validation."])


def _in_millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count else "-"
