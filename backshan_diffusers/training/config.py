"""The training config: one documented dataclass, filled from YAML and overridden from the command line."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..conditioning import CONDITIONINGS
from ..objective import PRESETS
from .scratch import ModelSize

STAGES = ("vae", "prior", "controlnet", "joint")
"""In the order in which a run from nothing goes through them."""

NEEDED = STAGES[:2]
"""What a run from nothing cannot leave out: all later stages stand on it."""


class ConfigError(ValueError):
    """Something that was asked for cannot be done; the message is one sentence that says what to do."""


def _of_run(text: str) -> dict:
    """Metadata of a field that is the same in every stage, so that `stages` must not change it."""
    return {"help": text, "of_run": True}


def _of_stage(text: str) -> dict:
    """Metadata of a field that may differ from stage to stage."""
    return {"help": text, "of_run": False}


@dataclass
class TrainingConfig:
    """Everything that decides what a training run computes. Values under `stages` win over the ones beside it."""

    output_dir: str = field(metadata=_of_run("Folder of the run: checkpoints, logs, sheets, pipeline."))
    base_model: str | None = field(
        default=None,
        metadata=_of_run("Pipeline folder or Hub id to begin from. None: a small model from nothing, as `model`."),
    )
    model: ModelSize = field(default_factory=ModelSize, metadata=_of_run("Shape of a model from nothing."))
    source: str = field(default="wardrobe", metadata=_of_run("Source of the pairs, a name `load_pairs` knows."))
    train_pairs: int = field(default=20_000, metadata=_of_run("Number of pairs to train on."))
    validation_pairs: int = field(default=64, metadata=_of_run("Number of held-out pairs for sheets and metrics."))
    conditioning: str | None = field(
        default=None,
        metadata=_of_run(f"What ControlNet reads: {', '.join(CONDITIONINGS)}. None: what the base records, or rgb."),
    )
    mirror: bool | None = field(
        default=None, metadata=_of_run("Flip the back picture left-right. None: what the base records, or true.")
    )
    prompt: str | None = field(
        default=None, metadata=_of_run("Prompt of every picture. None: what the base records, or the method's.")
    )
    seed: int = field(default=0, metadata=_of_run("Seeds weights, data order, noise and timesteps."))
    objective: str = field(default="paper", metadata=_of_stage(f"Preset of the loss: {', '.join(PRESETS)}."))
    condition_dropout: float = field(default=0.05, metadata=_of_stage("Share of items whose back picture is blanked."))
    prompt_dropout: float = field(default=0.05, metadata=_of_stage("Share of items whose prompt is empty."))
    crop_sizes: tuple[int, ...] = field(
        default=(32, 32, 32, 128),
        metadata=_of_stage("Sides in px of the crops the autoencoder learns from, one step each, in turn."),
    )
    kl_weight: float = field(default=2e-4, metadata=_of_stage("Weight of the autoencoder's KL divergence."))
    edge_weight: float = field(default=1.0, metadata=_of_stage("Weight of the autoencoder's L1 of pixel differences."))
    colour_weight: float = field(
        default=3.0, metadata=_of_stage("Weight of colour against brightness in the autoencoder's loss.")
    )
    max_steps: int = field(default=1_000, metadata=_of_stage("Optimiser steps of a stage."))
    batch_size: int = field(default=16, metadata=_of_stage("Pairs in a batch on each process."))
    learning_rate: float = field(default=5e-4, metadata=_of_stage("Highest learning rate of AdamW."))
    warmup_steps: int = field(default=50, metadata=_of_stage("Steps of linear warm-up."))
    weight_decay: float = field(default=0.01, metadata=_of_stage("Weight decay of AdamW."))
    max_grad_norm: float = field(default=1.0, metadata=_of_stage("Gradients of each model are clipped to this norm."))
    ema_decay: float = field(default=0.999, metadata=_of_stage("Highest decay of the averaged weights."))
    log_every: int = field(default=20, metadata=_of_stage("Steps between lines of metrics.jsonl."))
    checkpoint_every: int = field(
        default=500, metadata=_of_stage("Steps between checkpoints, a multiple of log_every.")
    )
    checkpoints_total_limit: int = field(
        default=2, metadata=_of_stage("Newest checkpoints that are kept; older ones are removed.")
    )
    validate_every: int = field(default=1_000, metadata=_of_stage("Steps between validation sheets."))
    stages: dict[str, dict] = field(
        default_factory=dict,
        metadata=_of_run("Stages to run, each with the values that differ for it. Empty: all of them."),
    )

    def __post_init__(self):
        for name, hint in get_type_hints(TrainingConfig).items():
            setattr(self, name, _typed(name, getattr(self, name), hint))
        self._check_values()
        self._check_stages()

    def _check_values(self) -> None:
        _check_choice("objective", self.objective, tuple(PRESETS))
        if self.conditioning is not None:
            _check_choice("conditioning", self.conditioning, CONDITIONINGS)
        for name in _AT_LEAST_ONE:
            _check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: give a number of at least 1.")
        for name in _NOT_NEGATIVE:
            _check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: give a number that is not negative.")
        for name in _SHARES:
            _check(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}: give a share from 0 to 1.")
        _check(0 <= self.seed < 2**63, f"seed is {self.seed}: give a number from 0 to 2**63 - 1.")
        for name in ("learning_rate", "max_grad_norm"):
            _check(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: give a positive number.")
        _check(
            self.checkpoint_every % self.log_every == 0,
            f"checkpoint_every is {self.checkpoint_every} and log_every {self.log_every}: give a multiple of it.",
        )
        _check(
            self.base_model is None or self.model == ModelSize(),
            "base_model and model are both given: the base brings its own shape, so leave model out.",
        )
        if self.base_model is None:
            self.check_crops(self.model.image_size, self.model.vae_factor)

    def check_crops(self, image_size: int, factor: int) -> None:
        """Refuse crops that do not fit in pictures of `image_size` px, or leave a part of a latent.

        Raises:
            ConfigError: if there are none, or one of them is impossible.
        """
        bad = [crop for crop in self.crop_sizes if not 0 < crop <= image_size or crop % factor]
        _check(
            self.crop_sizes and not bad,
            f"crop_sizes is {list(self.crop_sizes)}: give multiples of {factor} up to image_size, {image_size}.",
        )

    def _check_stages(self) -> None:
        for name, values in self.stages.items():
            _check_choice("stages", name, STAGES)
            misplaced = [entry.name for entry in fields(self) if entry.metadata["of_run"] and entry.name in values]
            _check(
                not misplaced,
                f"{', '.join(misplaced)} under the stage {name}: it belongs to the whole run, give it once.",
            )
            self.stage(name)
        names = tuple(self.stage_names())
        if self.base_model is None:
            _check(
                names[:2] == NEEDED[: len(names)],
                f"a run from nothing begins with {' and '.join(NEEDED)}: add them to stages, or give a base_model.",
            )
        else:
            _check(
                "prior" not in self.stages,
                "prior is no stage of a run from a base_model, which brings its U-Net: leave it out of stages.",
            )

    def stage(self, name: str) -> TrainingConfig:
        """The config with the values of one stage in place.

        Raises:
            ConfigError: if one of them is unknown or impossible.
        """
        changes = self.stages.get(name, {})
        _check_known(f"the stage {name}", changes)
        return replace(self, stages={}, **changes)

    def stage_names(self) -> list[str]:
        """The stages of this run, in order. By default a run from a trained base begins with ControlNet."""
        default = STAGES if self.base_model is None else STAGES[len(NEEDED) :]
        return [name for name in STAGES if name in (self.stages or default)]


_AT_LEAST_ONE = (
    *("train_pairs", "validation_pairs", "max_steps", "batch_size"),
    *("log_every", "checkpoint_every", "checkpoints_total_limit", "validate_every"),
)
_NOT_NEGATIVE = ("kl_weight", "edge_weight", "colour_weight", "warmup_steps", "weight_decay")
_SHARES = ("condition_dropout", "prompt_dropout", "ema_decay")


def load_config(path: str | Path, **overrides) -> TrainingConfig:
    """Read a YAML file; `overrides` win over it, also over the values of single stages.

    Raises:
        ConfigError: for an unreadable file, an unknown field or an impossible value.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    _check(isinstance(values, dict), f"{path} holds no fields: write lines of the form `field: value`.")
    values = values | overrides
    _check_known(str(path), values)
    _check("output_dir" in values, f"{path} names no output_dir: give --output_dir FOLDER.")
    stages = _typed("stages", values.get("stages"), dict[str, dict])
    values["stages"] = {
        name: {key: value for key, value in stage.items() if key not in overrides} for name, stage in stages.items()
    }
    return TrainingConfig(**values)


def _check(holds: Any, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{name} {value!r} does not exist: choose from {', '.join(choices)}.")


def _check_known(place: str, values: dict, cls: type = TrainingConfig) -> None:
    known = [entry.name for entry in fields(cls)]
    for name in values:
        _check(name in known, f"{place} has the unknown field {name!r}: choose from {', '.join(known)}.")


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type. YAML reads `5e-4` as text, a list where a tuple is meant, and nothing as None."""
    if get_origin(hint) is types.UnionType:  # X | None
        return None if value is None else _typed(name, value, get_args(hint)[0])
    if get_origin(hint) is tuple:
        _check(isinstance(value, list | tuple), f"{name} is {value!r}: give a list.")
        return tuple(_typed(name, each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is dict:  # of stages
        _check(isinstance(value or {}, dict), f"{name} is {value!r}: give stages, each with a colon after its name.")
        return {key: _typed(f"{name}.{key}", each, dict) for key, each in (value or {}).items()}
    if hint is dict:
        _check(isinstance(value or {}, dict), f"{name} is {value!r}: give lines of the form `field: value`.")
        return dict(value or {})
    if hint is ModelSize:
        return value if isinstance(value, ModelSize) else _model_size(value)
    if hint in (int, float):
        return _number(name, value, hint)
    _check(isinstance(value, hint), f"{name} is {value!r}: give {_KINDS[hint]}.")
    return value


def _number(name: str, value: Any, kind: type) -> int | float:
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    _check(
        math.isfinite(number) and (kind is float or number.is_integer()), f"{name} is {value!r}: give {_KINDS[kind]}."
    )
    return kind(number)


_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _model_size(values: Any) -> ModelSize:
    values = _typed("model", values, dict)
    _check_known("model", values, ModelSize)
    hints = get_type_hints(ModelSize)
    try:
        return ModelSize(**{name: _typed(f"model.{name}", value, hints[name]) for name, value in values.items()})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
