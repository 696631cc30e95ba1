"""The training config: one documented dataclass, filled from YAML and overridden from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from ..conditioning import CONDITIONINGS
from ..objective import PRESETS
from .scratch import ModelSize

STAGES = ("vae", "prior", "controlnet", "joint")
"""In the order in which a run from nothing goes through them."""


@dataclass
class TrainingConfig:
    """Everything that decides what a training run computes. Values under `stages` win over the ones beside it."""

    output_dir: str = field(metadata={"help": "Folder of the run: checkpoints, logs, sheets and the pipeline."})
    base_model: str | None = field(
        default=None,
        metadata={"help": "Pipeline folder or Hub id to begin from. None: a small model from nothing, as `model`."},
    )
    model: ModelSize = field(default_factory=ModelSize, metadata={"help": "Shape of a model from nothing."})
    source: str = field(default="wardrobe", metadata={"help": "Source of the pairs, a name `load_pairs` knows."})
    train_pairs: int = field(default=20_000, metadata={"help": "Number of pairs to train on."})
    validation_pairs: int = field(default=64, metadata={"help": "Number of held-out pairs for sheets and metrics."})
    conditioning: str = field(default="rgb", metadata={"help": f"What ControlNet reads: {', '.join(CONDITIONINGS)}."})
    mirror: bool = field(default=True, metadata={"help": "Flip the back picture left-right."})
    prompt: str = field(default="Front side of the person", metadata={"help": "Prompt of every picture."})
    objective: str = field(default="paper", metadata={"help": f"Preset of the loss: {', '.join(PRESETS)}."})
    condition_dropout: float = field(default=0.05, metadata={"help": "Share of items whose back picture is blanked."})
    prompt_dropout: float = field(default=0.05, metadata={"help": "Share of items whose prompt is empty."})
    crop_sizes: tuple[int, ...] = field(
        default=(32, 32, 32, 128),
        metadata={"help": "Sides in px of the crops the autoencoder learns from, one step each, in turn."},
    )
    kl_weight: float = field(default=2e-4, metadata={"help": "Weight of the autoencoder's KL divergence."})
    edge_weight: float = field(default=1.0, metadata={"help": "Weight of the autoencoder's L1 of pixel differences."})
    colour_weight: float = field(
        default=3.0, metadata={"help": "Weight of colour against brightness in the autoencoder's loss."}
    )
    stages: dict[str, dict] = field(
        default_factory=dict,
        metadata={"help": "Stages to run, in order, each with the values that differ for it. Empty: all four."},
    )
    max_steps: int = field(default=1_000, metadata={"help": "Optimiser steps of a stage."})
    batch_size: int = field(default=16, metadata={"help": "Pairs in a batch on each process."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Highest learning rate of AdamW."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients of each model are clipped to this norm."})
    ema_decay: float = field(default=0.999, metadata={"help": "Highest decay of the averaged weights."})
    checkpoint_every: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    validate_every: int = field(default=1_000, metadata={"help": "Steps between validation sheets."})
    log_every: int = field(default=20, metadata={"help": "Steps between lines of metrics.jsonl."})
    seed: int = field(default=0, metadata={"help": "Seeds weights, data order, noise and timesteps."})

    def __post_init__(self):
        if isinstance(self.model, dict):
            self.model = ModelSize(**{key: _as_tuple(value) for key, value in self.model.items()})
        self.crop_sizes = tuple(self.crop_sizes)
        self._check()

    def _check(self) -> None:
        _check_choice("conditioning", self.conditioning, CONDITIONINGS)
        _check_choice("objective", self.objective, tuple(PRESETS))
        for stage in self.stages:
            _check_choice("stages", stage, STAGES)
        for name in ("train_pairs", "validation_pairs", "max_steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number of at least 1.")
        if self.base_model is None and self.model.image_size % 8:
            raise ValueError(f"image_size is {self.model.image_size}: give a multiple of 8.")

    def stage(self, name: str) -> TrainingConfig:
        """The config with the values of one stage in place."""
        return replace(self, stages={}, **self.stages.get(name, {}))

    def stage_names(self) -> list[str]:
        """The stages of this run, in order. A run from a trained base has nothing to do before ControlNet."""
        every = STAGES if self.base_model is None else STAGES[2:]
        return [name for name in every if not self.stages or name in self.stages]


def load_config(path: str | Path, **overrides) -> TrainingConfig:
    """Read a YAML file; `overrides` win over it, also over the values of single stages.

    Raises:
        ValueError: one sentence, for an unreadable file, an unknown field or an impossible value.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a readable YAML file: {error}") from error
    known = {entry.name for entry in fields(TrainingConfig)}
    stage_fields = {key for stage in (values.get("stages") or {}).values() for key in (stage or {})}
    unknown = sorted((set(values) | set(overrides) | stage_fields) - known)
    if unknown:
        raise ValueError(f"{path} has the unknown field {unknown[0]!r}: choose from {', '.join(sorted(known))}.")
    values["stages"] = {
        name: {key: value for key, value in (stage or {}).items() if key not in overrides}
        for name, stage in (values.get("stages") or {}).items()
    }
    return TrainingConfig(**{**values, **overrides})


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} does not exist: choose from {', '.join(choices)}.")
