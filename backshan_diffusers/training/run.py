"""A run: the stages one after the other, each from the folder that the one before it wrote."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from filelock import FileLock, Timeout
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..data import Pairs, PairsError, load_pairs
from ..faces import FaceDetectorMissing
from ..files import full_disk_in_words
from ..folder_check import check_folder, model_around
from ..model_record import with_folders_marked
from ..models import BackshanControlNetModel
from ..objective import Objective
from ..pipelines import BackToFrontPipeline
from .base import open_base
from .building import StageBuilder
from .caching import PairArrays, cache_pairs, fingerprint, key_of, read_attributes, read_item_ids, rows_key
from .checkpoints import checkpoint_steps
from .config import NEEDED, ConfigError, TrainingConfig, check
from .growth import grow
from .logs import append_row, csv_step, drop_later_lines
from .lora import save_lora
from .records import check_record, write_record
from .savings import autocast, check_machine, round_frozen
from .scratch import build_controlnet, build_pipeline
from .sharding import check_shardable
from .stage_module import StageModule
from .trackers import check_tracker, tracker_arguments, tracking
from .trainer import StageTrainer
from .validation import SHEET_ROWS, front_masks, generate, rebuild, score, write_sheet
from .whitening import whiten_latents
from .widening import widen
from .zero import check_engine

logger = logging.getLogger(__name__)

WHITENED_PICTURES = 1024
"""Training fronts from which the statistics of the latents are taken."""


NOISE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""Fields of a scheduler's config that the training depends on, whatever samples."""

_REMEDY = "give more pairs (batch_size, train_pairs), or --objective.preset mse, which compares none."

PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which alone draws pairs, validates and writes."""


@dataclass(frozen=True)
class Previews:
    """What is done with a model that still learns.

    Args:
        every: after so many checkpoints.
        show: `(stage, step, write)`, called in the first process; `write(folder)` fills a folder with the pipeline.
    """

    every: int
    show: Callable[[str, int, Callable[[Path], None]], None]


class TrainingRun(StageBuilder):
    """Trains every stage of a config that is not finished yet.

    Args:
        config: what to train.
        previews: what is done with models that still learn; no weight depends on it.

    Raises:
        ConfigError: if the tracker is not installed, this machine lacks something else that the config asks for,
            accelerate was told to use an engine that is not supported, pairs are to be compared with each other of
            which a step has one, rollouts are a share that is no pair, or the output_dir lies in the folder of a
            pipeline or a model.
    """

    def __init__(self, config: TrainingConfig, previews: Previews | None = None):
        check_tracker(config.report_to)
        check_machine(config)
        super().__init__(config, _new_engine())
        self.previews = previews
        if model := model_around(self.output_dir):
            raise ConfigError(f"output_dir {self.output_dir} lies in {model}, which holds a model: give another one.")
        self._check_comparisons()
        self._check_rollouts()

    def run(self) -> Path:
        """Run the stages; returns the folder of the finished pipeline.

        Raises:
            ConfigError: if there are no such pairs, the base cannot be used, the folder belongs to another run or
                another process trains in it.
            DiskFullError: if there is no room left for what a stage writes.
        """
        if self.config.base_model is None:
            self.pairs(self.config.model.image_size)  # a base says its size only once it is open
        with self._alone(), full_disk_in_words(self.output_dir):
            source = None
            for name in self.config.stage_names():
                self._run_stage(name, source)
                source = self._finished(name)
        return source

    def _comparing(self) -> Iterator[tuple[str, TrainingConfig, Objective]]:
        """Name, config and objective of the stages that compare pairs with each other."""
        for name in self.config.stage_names():
            config = self.config.stage(name)
            objective = config.resolve_objective()
            if name not in NEEDED and objective.contrastive_weight:
                yield name, config, objective

    def _check_comparisons(self) -> None:
        """Refuse steps of one pair where pairs are compared."""
        for name, config, _ in self._comparing():
            parts = config.gradient_accumulation_steps if config.cached_contrast else 1
            compared = min(config.batch_size * parts * self.accelerator.num_processes, config.train_pairs)
            check(compared > 1, f"{name} compares the pairs of a step with each other, but a step has one: {_REMEDY}")

    def _check_rollouts(self) -> None:
        """Refuse shares of a micro-batch that are no pair."""
        for name in self.config.stage_names():
            config = self.config.stage(name)
            objective = config.resolve_objective()
            check(
                name in NEEDED or not objective.rollout_share or objective.rolled_out(config.batch_size),
                f"objective.rollout_share of {name} is {objective.rollout_share} and its batch_size"
                f" {config.batch_size}, which makes less than one pair: give more of either.",
            )

    def _check_outfits(self, pairs: PairArrays) -> None:
        """Refuse pairs of one outfit, which are no negatives of each other, where pairs are compared."""
        for name, _, objective in self._comparing():
            one_outfit = len(np.unique(pairs.groups)) == 1 and not objective.same_group_negatives
            check(not one_outfit, f"{name} compares outfits, but all pairs have one group_id: {_REMEDY}")

    def _check_likeness(self, pairs: PairArrays) -> None:
        """Refuse pairs among which no similar ones can be sought, where a stage shows these together."""
        for name in self.config.stage_names():
            config = self.config.stage(name)
            if name in NEEDED or config.hard_negatives == "none":
                continue
            check(
                len(pairs.backs) >= config.hard_group_size,
                f"{name} shows {config.hard_group_size} similar outfits together, but only {len(pairs.backs)} pairs"
                " can be used: give a smaller hard_group_size.",
            )
            check(
                config.hard_negatives != "attributes" or any(read_attributes(pairs, self._cache())),
                f"{name} compares the attributes of pairs, but these have none: give hard_negatives look.",
            )

    def _check_captions(self, pairs: PairArrays) -> None:
        """Refuse rules about attributes that no pair has; a rule that no pair fits may be a slip, and is told."""
        if not (rules := self.config.caption_rules()):
            return
        attributes = read_attributes(pairs, self._cache())
        unknown = set().union(*(rule.attributes for rule in rules)).difference(*attributes)
        check(
            not unknown,
            f"captions names {', '.join(sorted(unknown))}, which no pair has among its attributes: name another one.",
        )
        for text, rule in zip(self.config.captions, rules, strict=True):
            if not any(map(rule.applies, attributes)):
                logger.warning("captions has %r, and no pair is like that: nothing is ever said by it.", text)

    def start(self, folder: Path | None) -> BackToFrontPipeline:
        """The pipeline a stage begins with: the folder of the stage before, the base model, or random weights."""
        if folder is not None:
            pipeline = BackToFrontPipeline.from_pretrained(folder)
        elif self.config.base_model is not None:
            config = self.config
            pipeline = open_base(config.base_model, config.seed, config.controlnet, **self._recorded())
            if config.layers_per_block is not None:
                grow(pipeline, config.layers_per_block, config.seed)
            if config.block_out_channels:
                widen(pipeline, config.block_out_channels, config.seed)
        else:
            pipeline = build_pipeline(self.config.model, self.config.seed, **self._recorded_from_nothing())
        pipeline.set_progress_bar_config(disable=True)
        for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
            model.requires_grad_(False)  # a stage says what learns
        return pipeline

    def pairs(self, size: int) -> tuple[Pairs, Pairs]:
        """The training and the held-out pairs at `size` px, not drawn yet.

        Raises:
            ConfigError: if the source does not have them.
        """
        return self._pairs_of("train", size), self._pairs_of("validation", size)

    def _pairs_of(self, split: str, size: int) -> Pairs:
        folder = {} if self.config.source_path is None else {"path": self.config.source_path}
        name, wanted = f"{split}_pairs", getattr(self.config, f"{split}_pairs")
        try:
            rows = load_pairs(self.config.source, split=split, size=size, **folder)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        check(wanted <= len(rows), f"{name} is {wanted} and there are {len(rows)} such pairs: give at most so many.")
        return rows[:wanted]

    @contextmanager
    def _alone(self):
        """Keep a second run out of the folder while this one writes there."""
        lock = FileLock(self.output_dir / ".lock")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if self.accelerator.is_main_process:
                lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another run trains in {self.output_dir}: wait for it, or give another one.") from error
        except OSError as error:
            raise ConfigError(f"{self.output_dir} cannot be written ({error.strerror}): give another one.") from error
        try:
            yield
        finally:
            lock.release()

    def _recorded(self) -> dict:
        """Config fields of the ControlNet that this run's config names."""
        named = {
            "conditioning": self.config.conditioning,
            "mirror": self.config.mirror,
            "default_prompt": self.config.prompt,
        }
        return {field: value for field, value in named.items() if value is not None}

    def _recorded_from_nothing(self) -> dict:
        """A small model needs neither guidance nor many steps."""
        return {"default_guidance_scale": 1.0, "default_num_inference_steps": 20, **self._recorded()}

    def _finished(self, name: str) -> Path:
        return self.output_dir / name / "pipeline"

    def _run_stage(self, name: str, source: Path | None) -> None:
        config, folder, finished = self.config.stage(name), self.output_dir / name, self._finished(name)
        # A new engine for each stage: what the last stage registered for its checkpoints is no part of this one's.
        self.accelerator = _new_engine(**tracker_arguments(config.report_to, folder))
        engine = {
            "processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "device": self.accelerator.device.type,
        }
        record = {**with_folders_marked(asdict(config)), "stage": name, **engine}
        if (finished / "model_index.json").exists():
            _check_finished(finished)
            size = BackshanControlNetModel.load_config(finished / "controlnet")["image_size"]
            check_record(folder, record | {"pairs_key": rows_key(self.pairs(size)[0])}, None)
            return
        if (kind := self.accelerator.distributed_type) in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            check_shardable(config, kind.value)
        pipeline = self.start(source)
        rows, held_out_rows = self.pairs(pipeline.controlnet.config.image_size)
        record["pairs_key"] = rows_key(rows)
        record["base_key"] = None if source is None and config.base_model is None else _base_key(pipeline)
        record["accepted"] = check_record(folder, record, max(checkpoint_steps(folder), default=0))
        train, held_out = self._cached(rows, config.mask_face, tuple(config.focus())), self._cached(held_out_rows)
        self._check_outfits(train)
        self._check_likeness(train)
        self._check_captions(train)
        folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_record(folder, record)
        module, make_batch = self.build_stage(name, pipeline, train)
        prompts = self._prompts(pipeline)
        names_of = partial(self._item_ids, train)
        trainer = StageTrainer(self.accelerator, module, make_batch, config, name, folder, names_of)
        if self.accelerator.is_main_process:
            drop_later_lines(folder / "validation.csv", trainer.step, csv_step)
        masks = self._front_masks(held_out_rows)
        self.make_room(pipeline, module)
        if self.accelerator.is_main_process:  # it alone draws and saves
            components = {part: model for part, model in trainer.shown.items() if part in pipeline.components}
            pipeline.register_modules(**components)
            pipeline.to(self.accelerator.device)
        with tracking(self.accelerator, folder, trainer.step, record):
            trainer.train(
                lambda step: self._validate(name, step, pipeline, held_out, masks, prompts),
                lambda step: self._preview(trainer, step, module, source, record),
            )
        with trainer.averaged_weights():
            self._finish(name, module, trainer.shown, source, train, finished)
        if trainer.parted:
            trainer.parted.close()
        self.accelerator.wait_for_everyone()

    def make_room(self, pipeline: BackToFrontPipeline, module: StageModule) -> None:
        """Let go of what a stage has no need of: the text encoder, a safety checker, which would blacken the held-out
        fronts it takes amiss, and half the bits of weights that do not learn."""
        pipeline.register_modules(text_encoder=None, safety_checker=None)  # the prompts are encoded
        for name in ("vae", "unet", "controlnet"):
            if name not in module.trained:
                round_frozen(getattr(pipeline, name), self.accelerator)

    def _cached(self, rows: Pairs, mask_face: str = "none", masks: tuple[str, ...] = ()) -> PairArrays:
        try:
            with self.accelerator.main_process_first():
                return cache_pairs(rows, self._cache(), os.cpu_count() or 1, mask_face, masks)
        except (FaceDetectorMissing, PairsError) as error:
            raise ConfigError(str(error)) from error

    def _item_ids(self, pairs: PairArrays, places: Sequence[int]) -> list[str]:
        """What the source calls the pairs at these places of the cache."""
        item_ids = read_item_ids(pairs, self._cache())
        return [item_ids[place] for place in places]

    def _front_masks(self, rows: Pairs) -> np.ndarray | None:
        """For the process that validates."""
        return front_masks(rows, os.cpu_count() or 1) if self.accelerator.is_main_process else None

    def _validate(
        self,
        name: str,
        step: int,
        pipeline: BackToFrontPipeline,
        pairs: PairArrays,
        masks: np.ndarray | None,
        prompts: torch.Tensor,
    ) -> None:
        """A sheet and the scores of the held-out pairs, with the averaged weights in place."""
        if not self.accelerator.is_main_process:
            return
        with autocast(self.accelerator):  # models that do not learn are of another type than those that do
            if name == "vae":
                results = rebuild(pipeline.vae, pairs.fronts)
            else:
                shown = pairs.backs if name != "prior" else pairs.backs[:SHEET_ROWS]
                results = generate(pipeline, shown, self.config.seed, prompts)
        write_sheet(pairs, results[:SHEET_ROWS], self.output_dir / name / "sheets" / f"{step:07d}.png")
        scores = {metric: round(value, 6) for metric, value in score(results, pairs.fronts, masks).items()}
        append_row(self.output_dir / name / "validation.csv", {"step": step, **scores})
        self.accelerator.log({f"held_out_{metric}": value for metric, value in scores.items()}, step=step)

    def _preview(
        self, trainer: StageTrainer, step: int, module: StageModule, source: Path | None, record: dict
    ) -> None:
        """Show the model of a checkpoint, with its averaged weights, if it is its turn."""
        if self.previews is None or step % (self.previews.every * record["checkpoint_every"]):
            return
        write = partial(self._write_preview, module, trainer.shown, source, {**record, "steps_done": step})
        with trainer.averaged_weights():  # by every process: they may have to put the weights together
            if self.accelerator.is_main_process:
                self.previews.show(record["stage"], step, write)

    def _write_preview(
        self, module: StageModule, learned: Mapping[str, nn.Module], source: Path | None, record: dict, folder: Path
    ) -> None:
        """What the stage began with, what has learned, and the record; the models that learn stay as they are."""
        pipeline = self.start(source)
        for part, model in learned.items():
            if part in pipeline.components:
                pipeline.components[part].load_state_dict(model.state_dict())
        _save(pipeline, module, folder)
        write_record(folder, record)

    def _finish(
        self,
        name: str,
        module: StageModule,
        learned: Mapping[str, nn.Module],
        source: Path | None,
        pairs: PairArrays,
        folder: Path,
    ) -> None:
        """Write the stage's pipeline folder, complete or not at all: what it began with, and what has learned."""
        if not self.accelerator.is_main_process:
            return
        # opened anew, because what did not learn may have been rounded to half precision for the training
        pipeline = self.start(source)
        pipeline.register_modules(**{part: model for part, model in learned.items() if part in pipeline.components})
        if name == "vae" and not self.config.stage(name).keeps_latents:
            whiten_latents(pipeline.vae, pairs.fronts[:WHITENED_PICTURES])
        if name == "prior":
            recorded = self._recorded_from_nothing()
            controlnet = build_controlnet(pipeline.unet, self.config.model, self.config.seed, **recorded)
            pipeline.register_modules(controlnet=controlnet)
        for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
            model.to(memory_format=torch.contiguous_format)  # safetensors writes nothing else
        pending = folder.with_suffix(".tmp")
        shutil.rmtree(pending, ignore_errors=True)
        _save(pipeline, module, pending)
        pending.rename(folder)


def _save(pipeline: BackToFrontPipeline, module: StageModule, folder: Path) -> None:
    """Write a pipeline, and beside it the adapters of the U-Net that a stage trains."""
    pipeline.save_pretrained(folder)
    if "unet_lora" in module.trained:
        save_lora(module.component("unet"), folder)


def _check_finished(folder: Path) -> None:
    try:
        check_folder(folder, ())
    except OSError as error:
        reason, _, _ = str(error).rpartition(": ")  # its remedy is for folders
        raise ConfigError(f"a finished stage is damaged ({reason}): remove {folder} to write it again.") from error


def _base_key(pipeline: BackToFrontPipeline) -> str:
    """A hash of what a stage begins with: all weights, and what says how latents are scaled and noise is added."""
    weights = [fingerprint(getattr(pipeline, name)) for name in ("vae", "text_encoder", "unet", "controlnet")]
    noise = [pipeline.scheduler.config.get(name) for name in NOISE]
    return key_of(*weights, pipeline.vae.config.scaling_factor, noise)


def _new_engine(**arguments) -> Accelerator:
    engine = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **arguments)
    if engine.is_fsdp2:
        # Autocast chooses the precision of each operation, as on one device. FSDP by itself would round everything.
        engine.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    elif engine.distributed_type == DistributedType.DEEPSPEED:
        check_engine(engine)
    elif engine.distributed_type in _SHARDING:
        raise ConfigError(
            f"{engine.distributed_type.value} keeps models and optimizers in a way that checkpoints cannot hold: use"
            " FSDP with fsdp_version: 2, as examples/configs/accelerate/fsdp.yaml does."
        )
    return engine


_SHARDING = (DistributedType.FSDP, DistributedType.MEGATRON_LM)
"""Of these, FSDP only in its first version."""
