"""The training config: one documented dataclass whose values go together; options.py fills it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..conditioning import CONDITIONINGS
from ..faces import FACE_MASKINGS
from ..objective import PRESETS, Objective
from ..pictures import MINIMUM_SIDE
from .augmentation import Augmentation
from .captions import CaptionRule, read_rule

STAGES = ("vae", "prior", "controlnet", "joint")
"""In the order in which a run from nothing goes through them."""

TRACKERS = ("none", "tensorboard", "wandb")

HARD_NEGATIVES = ("none", "attributes", "look")
"""Batches at random, of outfits with the same labels, or of backs that look alike."""

NEEDED = STAGES[:2]
"""What a run from nothing cannot leave out: all later stages stand on it."""

DEFAULT_PRESET = "backshan"

UNLOCKS = ("decoder", "attention", "all")
"""What of the U-Net `joint` can train."""

OPTIMIZERS = ("adamw", "adamw8bit")
"""AdamW with moments in float32, or in 8 bits in blocks, as bitsandbytes keeps them."""

COMPILERS = ("none", "inductor", "aot_eager")
"""What torch.compile makes of the blocks that repeat: nothing, fast code, or a traced graph run as it is, which needs
no C++ compiler and is no faster."""

TEXT_HEADS = 2
"""Attention heads of the text encoder that a run from nothing builds."""


class ConfigError(ValueError):
    """Something that was asked for cannot be done; the message is one sentence that says what to do."""


def check(holds: Any, message: str) -> None:
    """Refuse with `message` what does not hold."""
    if not holds:
        raise ConfigError(message)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    check(value in choices, f"{name} {value!r} does not exist: choose from {', '.join(choices)}.")


def check_known(place: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse fields of `place` that it does not have."""
    for name in names:
        check(name in known, f"{place} has the unknown field {name!r}: choose from {', '.join(known)}.")


@dataclass(frozen=True)
class ModelSize:
    """Shape of a pipeline built from nothing.

    Args:
        image_size: side of the square pictures in pixels.
        latent_channels: channels of a latent; its side is `image_size / 2 ** (len(vae_channels) - 1)`.
        vae_channels: width of each level of the autoencoder, from full resolution down.
        unet_channels: width of each level of the U-Net, from latent resolution down.
        unet_attention: which of these levels attend to themselves and to the prompt; the middle always does.
        condition_channels: width of each level of the ControlNet's condition embedding, as many as `vae_channels`.
        text_width: width of the text encoder, and of what the U-Net attends to.
        text_layers: layers of the text encoder.
        attention_head_dim: heads of each attention, under the name that diffusers gives their number.
        norm_num_groups: groups of every group norm.

    Raises:
        ConfigError: if there is no such pipeline.
    """

    image_size: int = 128
    latent_channels: int = 8
    vae_channels: tuple[int, ...] = (16, 32, 64)
    unet_channels: tuple[int, ...] = (32, 64, 128, 128)
    unet_attention: tuple[bool, ...] = (False, False, True, False)
    condition_channels: tuple[int, ...] = (8, 16, 48)
    text_width: int = 64
    text_layers: int = 2
    attention_head_dim: int = 4
    norm_num_groups: int = 4

    def __post_init__(self):
        for name, value in asdict(self).items():
            if isinstance(value, int):
                check(value >= 1, f"model.{name} is {value}: give a number of at least 1.")
            elif name != "unet_attention":
                check(
                    value and min(value) >= 1, f"model.{name} is {list(value)}: give a width of at least 1 per level."
                )
        for name, other in (("condition_channels", "vae_channels"), ("unet_attention", "unet_channels")):
            levels, wanted = len(getattr(self, name)), len(getattr(self, other))
            check(levels == wanted, f"model.{name} has {levels} levels and {other} {wanted}: give as many.")
        check(
            self.image_size >= MINIMUM_SIDE,
            f"model.image_size is {self.image_size}: give at least {MINIMUM_SIDE}, the smallest picture that is read.",
        )
        self._check_divisions()

    def _check_divisions(self) -> None:
        smallest = self.vae_factor * 2 ** (len(self.unet_channels) - 1)
        for name, divisor in (("image_size", smallest), ("text_width", TEXT_HEADS)):
            value = getattr(self, name)
            check(value % divisor == 0, f"model.{name} is {value}: give a multiple of {divisor}.")
        attending = [width for width, attends in zip(self.unet_channels, self.unet_attention, strict=True) if attends]
        middle = self.unet_channels[-1]
        for name, widths in (
            ("norm_num_groups", (*self.vae_channels, *self.unet_channels)),
            ("attention_head_dim", (*attending, middle)),
        ):
            parts = getattr(self, name)
            odd = [width for width in widths if width % parts]
            check(
                not odd,
                f"model.{name} is {parts}, which does not divide the width {odd and odd[0]}: change one of them.",
            )

    @property
    def vae_factor(self) -> int:
        """Side of a picture over the side of its latents."""
        return 2 ** (len(self.vae_channels) - 1)


def _of_run(text: str) -> dict:
    """Metadata of a field that is the same in every stage, so that `stages` must not change it."""
    return {"help": text, "of_run": True}


def _of_stage(text: str) -> dict:
    """Metadata of a field that may differ from stage to stage."""
    return {"help": text, "of_run": False}


@dataclass
class TrainingConfig:
    """Everything that decides what a training run computes. Values under `stages` win over the ones beside it.

    Raises:
        ConfigError: if a value is impossible, or some do not go together.
    """

    output_dir: str = field(metadata=_of_run("Folder of the run: checkpoints, logs, sheets, pipeline."))
    base_model: str | None = field(
        default=None,
        metadata=_of_run("Pipeline folder or Hub id to begin from. None: a small model from nothing, as `model`."),
    )
    controlnet: str | None = field(
        default=None,
        metadata=_of_run(
            "Folder or Hub id of a ControlNet to begin from. None: the base's, or a copy of its U-Net's encoder."
        ),
    )
    layers_per_block: int | None = field(
        default=None,
        metadata=_of_run(
            "Layers to which each block of the U-Net and the ControlNet of base_model grows; new ones begin as"
            " the identity. None: as many as it has."
        ),
    )
    block_out_channels: tuple[int, ...] = field(
        default=(),
        metadata=_of_run(
            "Widths to which the levels of the U-Net and the ControlNet of base_model grow; new channels begin as"
            " copies. Empty: those it has."
        ),
    )
    model: ModelSize = field(default_factory=ModelSize, metadata=_of_run("Shape of a model from nothing."))
    source: str = field(default="wardrobe", metadata=_of_run("Source of the pairs, a name `load_pairs` knows."))
    source_path: str | None = field(
        default=None, metadata=_of_run("Folder of the source. None: the source needs no files.")
    )
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
        default=None,
        metadata=_of_run("Prompt, to which captions may add. None: what the base records, or the method's."),
    )
    captions: tuple[str, ...] = field(
        default=(),
        metadata=_of_run("What the prompt of a pair also says: texts, ATTRIBUTE=VALUE: WORDS, each for an attribute."),
    )
    mask_face: str = field(
        default="none",
        metadata=_of_run(f"Hide faces of the fronts and leave them out of the loss: {', '.join(FACE_MASKINGS)}."),
    )
    cache_dir: str | None = field(
        default=None, metadata=_of_run("Folder of what is computed once, may be shared. None: OUTPUT_DIR/cache.")
    )
    accept_changes: bool = field(
        default=False, metadata=_of_run("Go on in a folder that was begun with other values, from its checkpoints.")
    )
    seed: int = field(default=0, metadata=_of_run("Seeds weights, data order, noise and timesteps."))
    report_to: str = field(
        default="tensorboard", metadata=_of_run(f"Where the logs go besides their files: {', '.join(TRACKERS)}.")
    )
    objective: dict[str, Any] = field(
        default_factory=lambda: {"preset": DEFAULT_PRESET},
        metadata=_of_stage("`preset` and the fields of `Objective` that differ from it; all of them once it is read."),
    )
    condition_dropout: float = field(default=0.05, metadata=_of_stage("Share of items whose back picture is blanked."))
    prompt_dropout: float = field(default=0.05, metadata=_of_stage("Share of items whose prompt is empty."))
    person_weight: float = field(
        default=1.0, metadata=_of_stage("How many times as much as the backdrop the person of a front counts.")
    )
    head_weight: float = field(
        default=1.0, metadata=_of_stage("The same for the head; where both count more, the larger one holds.")
    )
    unseen_weight: float = field(
        default=1.0,
        metadata=_of_stage(
            "How many times as much, at most, the squared error counts detail of a front that its flipped back lacks."
        ),
    )
    flip: float = field(default=0.0, metadata=_of_stage("Share of pairs of which both views are flipped left-right."))
    colour_jitter: tuple[float, ...] = field(
        default=(),
        metadata=_of_stage("Largest changes of brightness, contrast, saturation and hue, the same for both views."),
    )
    affine: tuple[float, ...] = field(
        default=(), metadata=_of_stage("Largest rotation in degrees, translation and scaling as shares.")
    )
    affine_shared: bool = field(
        default=True, metadata=_of_stage("The back moves as the front does, mirrored. False: each by itself.")
    )
    crop_sizes: tuple[int, ...] = field(
        default=(32, 32, 32, 128),
        metadata=_of_stage("Sides in px of the crops the autoencoder learns from, one step each, in turn."),
    )
    latents_stay: bool = field(
        default=True,
        metadata=_of_stage("Let the stage vae of a base_model train the decoder alone, so that its U-Net still fits."),
    )
    kl_weight: float = field(default=2e-4, metadata=_of_stage("Weight of the autoencoder's KL divergence."))
    edge_weight: float = field(default=1.0, metadata=_of_stage("Weight of the autoencoder's L1 of pixel differences."))
    colour_weight: float = field(
        default=3.0, metadata=_of_stage("Weight of colour against brightness in the autoencoder's loss.")
    )
    unlock_unet: str = field(
        default="all", metadata=_of_stage(f"What of the U-Net the stage joint trains: {', '.join(UNLOCKS)}.")
    )
    unet_lora_rank: int | None = field(
        default=None,
        metadata=_of_stage("Rank of LoRA adapters that learn in place of the U-Net in the stage joint. None: none."),
    )
    max_steps: int = field(default=1_000, metadata=_of_stage("Optimiser steps of a stage."))
    batch_size: int = field(default=16, metadata=_of_stage("Pairs in a batch on each process."))
    gradient_accumulation_steps: int = field(
        default=1, metadata=_of_stage("Micro-batches of batch_size pairs in an optimiser step.")
    )
    cached_contrast: bool = field(
        default=False,
        metadata=_of_stage("Compare the pairs of all micro-batches with each other, at the cost of a second pass."),
    )
    hard_negatives: str = field(
        default="none",
        metadata=_of_stage(f"What makes outfits similar that come in one batch: {', '.join(HARD_NEGATIVES)}."),
    )
    hard_group_size: int = field(default=4, metadata=_of_stage("Similar outfits that come together."))
    gradient_checkpointing: bool = field(
        default=False, metadata=_of_stage("Compute activations anew on the way back instead of keeping them.")
    )
    channels_last: bool = field(
        default=True, metadata=_of_stage("Let pictures and kernels lie in memory with their channels last.")
    )
    compile: str = field(
        default="none",
        metadata=_of_stage(f"Compiler of the attention blocks of U-Net and ControlNet: {', '.join(COMPILERS)}."),
    )
    optimizer: str = field(default="adamw", metadata=_of_stage(f"What moves the weights: {', '.join(OPTIMIZERS)}."))
    learning_rate: float = field(default=5e-4, metadata=_of_stage("Highest learning rate of AdamW."))
    unet_learning_rate: float | None = field(
        default=None, metadata=_of_stage("The same for the U-Net in the stage joint. None: as learning_rate.")
    )
    discriminator_learning_rate: float | None = field(
        default=None, metadata=_of_stage("The same for an adversary's discriminator. None: as learning_rate.")
    )
    warmup_steps: int = field(default=50, metadata=_of_stage("Steps of linear warm-up."))
    adam_beta1: float = field(
        default=0.9, metadata=_of_stage("Decay of AdamW's first moment in all models; with an adversary 0.5 is usual.")
    )
    weight_decay: float = field(default=0.01, metadata=_of_stage("Weight decay of AdamW."))
    max_grad_norm: float = field(default=1.0, metadata=_of_stage("Gradients of each model are clipped to this norm."))
    ema_decay: float = field(default=0.999, metadata=_of_stage("Highest decay of the averaged weights."))
    log_every: int = field(default=20, metadata=_of_stage("Steps between lines of metrics.jsonl."))
    probe_every: int = field(
        default=500,
        metadata=_of_stage("Steps between probes: which term of the loss pulls how hard, and whether backs matter."),
    )
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
        self.objective = _complete(self.objective)
        self._check_values()
        self._check_base()
        self._check_stages()

    def _check_values(self) -> None:
        check_choice("hard_negatives", self.hard_negatives, HARD_NEGATIVES)
        if self.hard_negatives != "none":
            check(
                self.hard_group_size >= 2 and self.batch_size % self.hard_group_size == 0,
                f"hard_group_size is {self.hard_group_size} and batch_size {self.batch_size}: give a part of it, at"
                " least 2.",
            )
            check(
                self.hard_group_size <= self.train_pairs,
                f"hard_group_size is {self.hard_group_size} and train_pairs {self.train_pairs}: give at most so many.",
            )
        check_choice("report_to", self.report_to, TRACKERS)
        check_choice("unlock_unet", self.unlock_unet, UNLOCKS)
        check_choice("compile", self.compile, COMPILERS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("mask_face", self.mask_face, FACE_MASKINGS)
        check(
            not (self.optimizer == "adamw8bit" and self.channels_last),
            "optimizer adamw8bit lays weights out with their channels first in every step: give channels_last false"
            " beside it.",
        )
        check(
            self.unet_lora_rank is None or self.unlock_unet == "all",
            f"unet_lora_rank and unlock_unet {self.unlock_unet} are both given: adapters learn in place of the U-Net's"
            " own weights, so leave one of them out.",
        )
        check(
            self.layers_per_block is None or (self.unet_lora_rank is None and self.unlock_unet != "attention"),
            "layers_per_block is given, and with unet_lora_rank or unlock_unet attention no convolution of the U-Net"
            " learns: new layers would do nothing for ever, so leave one of them out.",
        )
        check(
            not self.block_out_channels or (self.unet_lora_rank is None and self.unlock_unet == "all"),
            "block_out_channels is given, and with unet_lora_rank or unlock_unet other than all a part of the wider"
            " U-Net does not learn to use what is new: leave one of them out.",
        )
        try:
            self.caption_rules()
            self.augmentation()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.conditioning is not None:
            check_choice("conditioning", self.conditioning, CONDITIONINGS)
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            check(1 <= value < math.inf, f"{name} is {value}: give a number of at least 1.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name} is {value}: give a number that is not negative.")
        for name in _SHARES:
            check(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}: give a share from 0 to 1.")
        check(0 <= self.seed < 2**63, f"seed is {self.seed}: give a number from 0 to 2**63 - 1.")
        layers = self.layers_per_block
        check(layers is None or layers >= 1, f"layers_per_block is {layers}: give a number of at least 1, or null.")
        rank = self.unet_lora_rank
        check(rank is None or rank >= 1, f"unet_lora_rank is {rank}: give a number of at least 1, or null.")
        check(0 <= self.adam_beta1 < 1, f"adam_beta1 is {self.adam_beta1}: give a share from 0 to below 1.")
        for name in _POSITIVE:
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"{name} is {value}: give a positive number.")
        for name in _NAMES:
            value = getattr(self, name)
            check(value is None or value.strip(), f"{name} is {value!r}: give a folder, or leave it out.")
        check(self.output_dir.strip(), f"output_dir is {self.output_dir!r}: give the name of a folder.")
        check(
            self.checkpoint_every % self.log_every == 0,
            f"checkpoint_every is {self.checkpoint_every} and log_every {self.log_every}: give a multiple of it.",
        )

    def _check_base(self) -> None:
        if self.base_model is None:
            check(
                self.controlnet is None,
                "controlnet is given without base_model: name the pipeline that it belongs to.",
            )
            check(
                self.layers_per_block is None,
                "layers_per_block is given without base_model: a model from nothing has one layer in each block,"
                " so leave it out, or name one.",
            )
            check(
                not self.block_out_channels,
                "block_out_channels is given without base_model: the widths of a model from nothing are"
                " model.unet_channels, so give them there, or name one.",
            )
            check(
                self.latents_stay,
                "latents_stay is false without base_model: a model from nothing has no latents to keep, so leave it"
                " out.",
            )
            self.check_crops(self.model.image_size, self.model.vae_factor)
        else:
            check(
                self.model == ModelSize(),
                "base_model and model are both given: the base brings its own shape, so leave model out.",
            )

    def check_crops(self, image_size: int, factor: int) -> None:
        """Refuse crops that do not fit in pictures of `image_size` px, or leave a part of a latent.

        Raises:
            ConfigError: if there are none, or one of them is impossible.
        """
        bad = [crop for crop in self.crop_sizes if not 0 < crop <= image_size or crop % factor]
        check(
            self.crop_sizes and not bad,
            f"crop_sizes is {list(self.crop_sizes)}: give multiples of {factor} up to image_size, {image_size}.",
        )

    def _check_stages(self) -> None:
        for name, values in self.stages.items():
            check_choice("stages", name, STAGES)
            for entry in ("unlock_unet", "unet_learning_rate", "unet_lora_rank"):
                check(
                    name == "joint" or entry not in values,
                    f"{entry} under the stage {name}: only joint unlocks a U-Net, so give it there.",
                )
            check(
                values.get("discriminator_learning_rate") is None
                or (name not in NEEDED and self.stage(name).resolve_objective().adversarial_weight),
                f"discriminator_learning_rate under the stage {name}: there is no adversary, so leave it out, or give"
                " objective.adversarial_weight.",
            )
            check(
                name != "vae" or values.get("compile", "none") == "none",
                "compile under the stage vae: an autoencoder has no blocks that repeat, so leave it out there.",
            )
            self.stage(name)
        names = tuple(self.stage_names())
        check(
            not self.block_out_channels or "joint" in names,
            "block_out_channels is given, and without the stage joint the wider U-Net does not learn to use what is"
            " new: add joint to stages, or leave it out.",
        )
        if self.base_model is None:
            check(
                names[:2] == NEEDED[: len(names)],
                f"a run from nothing begins with {' and '.join(NEEDED)}: add them to stages, or give a base_model.",
            )
        else:
            check(
                "prior" not in self.stages,
                "prior is no stage of a run from a base_model, which brings its U-Net: leave it out of stages.",
            )

    def stage(self, name: str) -> TrainingConfig:
        """The config with the values of one stage in place.

        Raises:
            ConfigError: if one of them is unknown or impossible.
        """
        changes = self.stages.get(name, {})
        check_known(f"the stage {name}", changes, OF_STAGE)
        objective = changes.get("objective", {})
        if "preset" not in objective:
            objective = self.objective | objective
        return replace(self, **changes | {"objective": objective, "stages": {}})

    def caption_rules(self) -> list[CaptionRule]:
        """What is said of pairs."""
        return [read_rule(text) for text in self.captions]

    def augmentation(self) -> Augmentation:
        """What may happen to a pair of this stage."""
        return Augmentation(self.flip, self.colour_jitter, self.affine, self.affine_shared)

    @property
    def keeps_latents(self) -> bool:
        """Whether the stage `vae` leaves the latents alone, because a U-Net has learned from them."""
        return self.base_model is not None and self.latents_stay

    def focus(self) -> dict[str, float]:
        """Masks of the fronts whose pixels count more than once, and how much; the largest comes last."""
        weights = {"front_person": self.person_weight, "front_head": self.head_weight}
        return {name: weight for name, weight in sorted(weights.items(), key=lambda each: each[1]) if weight > 1}

    def stage_names(self) -> list[str]:
        """The stages of this run, in order. By default a run from a trained base begins with ControlNet."""
        return [name for name in STAGES if name in (self.stages or default_stages(self.base_model))]

    def resolve_objective(self) -> Objective:
        """What the run minimises; of a stage's config: what that stage does."""
        return Objective(**{name: value for name, value in self.objective.items() if name != "preset"})


OF_STAGE = tuple(entry.name for entry in fields(TrainingConfig) if not entry.metadata["of_run"])
"""Fields that may differ from stage to stage."""

_FOCUS = ("person_weight", "head_weight")
_AT_LEAST_ONE = (
    *("train_pairs", "validation_pairs", "max_steps", "batch_size", "gradient_accumulation_steps", "unseen_weight"),
    *("log_every", "probe_every", "checkpoint_every", "checkpoints_total_limit", "validate_every", *_FOCUS),
)
_NOT_NEGATIVE = ("kl_weight", "edge_weight", "colour_weight", "warmup_steps", "weight_decay")
_POSITIVE = ("learning_rate", "unet_learning_rate", "discriminator_learning_rate", "max_grad_norm")
_SHARES = ("condition_dropout", "prompt_dropout", "ema_decay")
_NAMES = ("base_model", "controlnet", "source_path", "cache_dir")


def default_stages(base_model: str | None) -> tuple[str, ...]:
    """The stages of a run whose config names none."""
    return STAGES if base_model is None else STAGES[len(NEEDED) :]


def _complete(choice: dict[str, Any]) -> dict[str, Any]:
    """A preset with its changes, as the preset's name and every field of its [`Objective`]."""
    check(isinstance(choice, dict), f"objective is {choice!r}: give a dict with `preset`.")
    changes = dict(choice)
    preset = changes.pop("preset", DEFAULT_PRESET)
    check_choice("objective.preset", preset, tuple(PRESETS))
    check_known("objective", changes, [entry.name for entry in fields(Objective)])
    for name, value in changes.items():
        check(
            not isinstance(value, float) or math.isfinite(value), f"objective.{name} is {value}: give a finite number."
        )
    try:
        return {"preset": preset, **asdict(replace(PRESETS[preset], **changes))}
    except ValueError as error:
        raise ConfigError(str(error)) from error
