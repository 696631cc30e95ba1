"""A run: the stages one after the other, each from the folder that the one before it wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from filelock import FileLock, Timeout
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..data import Pairs, PairsError, load_pairs
from ..faces import FaceDetectorMissing
from ..files import full_disk_in_words
from ..objective import PRESETS, Objective
from ..pipelines import BackToFrontPipeline
from .base import open_base
from .batches import (
    StepPairs,
    StepSampler,
    back_control_batch,
    crop_batch,
    crop_shape,
    front_control_batch,
    kept_cells,
    latent_batch,
    noise_batch,
    timestep_batch,
)
from .caching import PairArrays, cache_latents, cache_pairs, encode, read_attributes
from .checkpoints import checkpoint_steps
from .config import NEEDED, ConfigError, TrainingConfig, check
from .logs import append_line, csv_step, drop_later_lines
from .order import LikenessOrder, RandomOrder, describe_by_attributes, describe_by_look
from .records import check_record, write_record
from .scratch import build_controlnet, build_pipeline, seeded
from .stages import AutoencoderStage, Batch, ControlStage, PriorStage, StageModule, noise_schedule
from .trainer import StageTrainer
from .validation import SHEET_ROWS, generate, mean_l1, rebuild, write_sheet
from .whitening import whiten_latents

BatchMaker = Callable[[int, StepSampler], Batch]

WHITENED_PICTURES = 1024
"""Training fronts from which the statistics of the latents are taken."""


_REMEDY = "give more pairs (batch_size, train_pairs), or --objective.preset mse, which compares none."

PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which alone draws pairs, validates and writes."""


class TrainingRun:
    """Trains every stage of a config that is not finished yet.

    Args:
        config: what to train.

    Raises:
        ConfigError: if accelerate was told to use an engine that is not supported, or pairs are to be compared with
            each other of which a step has one.
    """

    def __init__(self, config: TrainingConfig):
        self.config, self.accelerator = config, _new_engine()
        self.output_dir = Path(config.output_dir)
        self._check_comparisons()

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

    def _check_outfits(self, pairs: PairArrays) -> None:
        """Refuse pairs of one outfit, which are no negatives of each other, where pairs are compared."""
        for name, _, objective in self._comparing():
            one_outfit = len(np.unique(pairs.groups)) == 1 and not objective.same_group_negatives
            check(not one_outfit, f"{name} compares outfits, but all pairs have one group_id: {_REMEDY}")

    def start(self, folder: Path | None) -> BackToFrontPipeline:
        """The pipeline a stage begins with: the folder of the stage before, the base model, or random weights."""
        if folder is not None:
            pipeline = BackToFrontPipeline.from_pretrained(folder)
        elif self.config.base_model is not None:
            config = self.config
            pipeline = open_base(config.base_model, config.seed, config.controlnet, **self._recorded())
        else:
            pipeline = build_pipeline(self.config.model, self.config.seed, **self._recorded_from_nothing())
        pipeline.set_progress_bar_config(disable=True)
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

    def build_stage(
        self, name: str, pipeline: BackToFrontPipeline, pairs: PairArrays
    ) -> tuple[StageModule, BatchMaker]:
        """What a stage trains, and its batches."""
        return _STAGES[name](self, self.config.stage(name), pipeline, pairs)

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
        # A new engine for each stage: what the last stage registered for its checkpoints is no part of this one's.
        self.accelerator = _new_engine()
        config, folder, finished = self.config.stage(name), self.output_dir / name, self._finished(name)
        engine = {
            "processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "device": self.accelerator.device.type,
        }
        record = {**asdict(config), "stage": name, **engine}
        if (finished / "model_index.json").exists():
            check_record(folder, record, None)
            return
        check_record(folder, record, max(checkpoint_steps(folder), default=0))
        pipeline = self.start(source)
        rows, held_out_rows = self.pairs(pipeline.controlnet.config.image_size)
        train, held_out = self._cached(rows, config.mask_face), self._cached(held_out_rows)
        self._check_outfits(train)
        folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_record(folder, record)
        module, make_batch = self.build_stage(name, pipeline, train)
        prompts = self._prompts(pipeline)
        trainer = StageTrainer(self.accelerator, module, make_batch, config, name, folder)
        if self.accelerator.is_main_process:
            drop_later_lines(folder / "validation.csv", trainer.step, csv_step)
        with _without_text_encoder(pipeline):
            if self.accelerator.is_main_process:  # it alone draws and saves
                components = {name: model for name, model in trainer.shown.items() if name in pipeline.components}
                pipeline.register_modules(**components)
                pipeline.to(self.accelerator.device)
            trainer.train(lambda step: self._validate(name, step, pipeline, held_out, prompts))
        with trainer.averaged_weights():
            self._finish(name, pipeline, train, finished)
        self.accelerator.wait_for_everyone()

    def _cached(self, rows: Pairs, mask_face: str = "none") -> PairArrays:
        try:
            with self.accelerator.main_process_first():
                return cache_pairs(rows, self._cache(), os.cpu_count() or 1, mask_face)
        except (FaceDetectorMissing, PairsError) as error:
            raise ConfigError(str(error)) from error

    def _cache(self) -> Path:
        return self.output_dir / "cache" if self.config.cache_dir is None else Path(self.config.cache_dir)

    def _latents(
        self, config, pipeline: BackToFrontPipeline, pairs: PairArrays, view: str = "fronts", mirror: bool = False
    ) -> Callable[[StepPairs], torch.Tensor]:
        """Where a step's latents come from: the cache, or the autoencoder if pictures are never the same twice.

        Args:
            config: of the stage.
            pipeline: whose autoencoder is used.
            pairs: all of them.
            view: `fronts` or `backs`.
            mirror: whether the pictures are flipped left-right, whatever an augmentation does besides.
        """
        vae = pipeline.vae.to(self.accelerator.device)
        augmentation = config.augmentation()
        if augmentation.changes_pixels:
            return lambda step_pairs: encode(step_pairs.pictures(view, mirror), vae)
        as_they_are = cache_latents(pairs, vae, self._cache(), self.accelerator, view, mirror)
        if not augmentation.flip:
            return lambda step_pairs: as_they_are[step_pairs.indices]
        flipped = cache_latents(pairs, vae, self._cache(), self.accelerator, view, not mirror)
        return lambda step_pairs: torch.where(
            step_pairs.flipped[:, None, None, None], flipped[step_pairs.indices], as_they_are[step_pairs.indices]
        )

    @torch.no_grad()
    def _prompts(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        """Embeddings of the recorded prompt and of the empty one, `2 x T x E`; they are constants of the run."""
        prompts = [pipeline.controlnet.config.default_prompt, ""]
        return pipeline.encode_prompt(prompts, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]

    def _vae_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        config.check_crops(pipeline.controlnet.config.image_size, pipeline.vae_scale_factor)
        order, latent_channels = RandomOrder(len(pairs.backs)), pipeline.vae.config.latent_channels
        augmentation = config.augmentation()

        def make_batch(number: int, sampler: StepSampler) -> Batch:
            side, count = crop_shape(number, config.batch_size, config.crop_sizes)
            indices = sampler.indices(number, config.batch_size, order)[:count]
            step_pairs = StepPairs(pairs, indices, augmentation, sampler, number)
            batch = crop_batch(step_pairs, side, sampler.generator(number, "crop"))
            shape = (len(batch["pixels"]), latent_channels, *(2 * [side // pipeline.vae_scale_factor]))
            noise = torch.randn(shape, generator=sampler.generator(number, "noise"))
            return batch | {"noise": noise, "items": torch.from_numpy(indices)}

        weights = {name: getattr(config, name) for name in ("kl_weight", "edge_weight", "colour_weight")}
        return AutoencoderStage(pipeline.vae, self.config.base_model is not None, **weights), make_batch

    def _denoising(
        self, config, pipeline, pairs, objective: Objective, order: RandomOrder | LikenessOrder
    ) -> Callable[[int, StepSampler], tuple[Batch, StepPairs]]:
        """Batches of front latents with prompts, noise and timesteps, and the pairs they come from."""
        latents, prompts = self._latents(config, pipeline, pairs), self._prompts(pipeline)
        augmentation, total = config.augmentation(), pipeline.scheduler.config.num_train_timesteps

        def make_batch(number: int, sampler: StepSampler) -> tuple[Batch, StepPairs]:
            indices = sampler.indices(number, config.batch_size, order)
            step_pairs = StepPairs(pairs, indices, augmentation, sampler, number)
            drops = sampler.generator(number, "prompt")
            batch = latent_batch(latents(step_pairs), prompts, drops, config.prompt_dropout)
            batch |= noise_batch(objective, batch["latents"], sampler.generator(number, "noise"))
            if objective.timesteps == "item":
                timesteps = timestep_batch(len(indices), total, sampler.generator(number, "timestep"))
            else:
                step = number // config.gradient_accumulation_steps
                timesteps = timestep_batch(1, total, sampler.shared_generator(step, "timestep")).repeat(len(indices))
            if pairs.faces is not None:
                batch["weights"] = kept_cells(step_pairs.faces(), pipeline.vae_scale_factor)
            return batch | {"timesteps": timesteps, "items": torch.from_numpy(indices)}, step_pairs

        return make_batch

    def _prior_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        denoising = self._denoising(config, pipeline, pairs, PRESETS["mse"], RandomOrder(len(pairs.backs)))
        schedule = noise_schedule(pipeline.scheduler)
        return PriorStage(pipeline.unet, schedule), lambda number, sampler: denoising(number, sampler)[0]

    def _control_stage(self, config, pipeline, pairs, train_unet: str | None = None) -> tuple[StageModule, BatchMaker]:
        controlnet, objective = pipeline.controlnet, config.resolve_objective()
        denoising = self._denoising(config, pipeline, pairs, objective, self._order(config, pairs))
        compares_own = objective.compares_fronts and objective.front_latents == "own"
        mirror = controlnet.config.mirror
        back_latents = self._latents(config, pipeline, pairs, "backs", mirror) if compares_own else None

        def make_batch(number: int, sampler: StepSampler) -> Batch:
            batch, step_pairs = denoising(number, sampler)
            blanks = sampler.generator(number, "blank")
            backs, shown = back_control_batch(step_pairs.backs(), controlnet, blanks, config.condition_dropout)
            batch["back_control"] = backs
            if objective.contrastive_weight:
                weight = objective.weight_at(number // config.gradient_accumulation_steps)
                batch["contrastive_weight"] = torch.tensor(weight)
                batch["shown"], batch["groups"] = shown, step_pairs.groups()
            if objective.compares_fronts:
                batch["front_control"] = front_control_batch(step_pairs.fronts(), controlnet)
            if compares_own:
                batch["back_latents"] = back_latents(step_pairs)
            return batch

        schedule = noise_schedule(pipeline.scheduler)
        with seeded(config.seed):
            return ControlStage(controlnet, pipeline.unet, schedule, objective, train_unet), make_batch

    def _order(self, config: TrainingConfig, pairs: PairArrays) -> RandomOrder | LikenessOrder:
        """The order in which pairs come."""
        if config.hard_negatives == "look":
            return LikenessOrder(describe_by_look(pairs.backs), config.hard_group_size)
        if config.hard_negatives == "attributes":
            descriptors = describe_by_attributes(read_attributes(pairs, self._cache()))
            return LikenessOrder(descriptors, config.hard_group_size)
        return RandomOrder(len(pairs.backs))

    def _joint_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        return self._control_stage(config, pipeline, pairs, train_unet=config.unlock_unet)

    def _validate(
        self, name: str, step: int, pipeline: BackToFrontPipeline, pairs: PairArrays, prompts: torch.Tensor
    ) -> None:
        """A sheet and the mean L1 of the held-out pairs, with the averaged weights in place."""
        if not self.accelerator.is_main_process:
            return
        if name == "vae":
            results = rebuild(pipeline.vae, pairs.fronts)
        else:
            shown = pairs.backs if name != "prior" else pairs.backs[:SHEET_ROWS]
            results = generate(pipeline, shown, self.config.seed, prompts)
        write_sheet(pairs, results[:SHEET_ROWS], self.output_dir / name / "sheets" / f"{step:07d}.png")
        append_line(self.output_dir / name / "validation.csv", f"{step},{mean_l1(results, pairs.fronts):.6f}")

    def _finish(self, name: str, pipeline: BackToFrontPipeline, pairs: PairArrays, folder: Path) -> None:
        """Write the stage's pipeline folder, complete or not at all."""
        if not self.accelerator.is_main_process:
            return
        if name == "vae" and self.config.base_model is None:
            whiten_latents(pipeline.vae, pairs.fronts[:WHITENED_PICTURES])
        if name == "prior":
            recorded = self._recorded_from_nothing()
            controlnet = build_controlnet(pipeline.unet, self.config.model, self.config.seed, **recorded)
            pipeline.register_modules(controlnet=controlnet)
        for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
            model.to(memory_format=torch.contiguous_format)  # safetensors writes nothing else
        pending = folder.with_suffix(".tmp")
        shutil.rmtree(pending, ignore_errors=True)
        pipeline.save_pretrained(pending)
        pending.rename(folder)


@contextmanager
def _without_text_encoder(pipeline: BackToFrontPipeline) -> Iterator[None]:
    """Within, the text encoder is no part of the pipeline: it stays on the CPU, for when the pipeline is saved."""
    text_encoder = pipeline.text_encoder
    pipeline.register_modules(text_encoder=None)
    try:
        yield
    finally:
        pipeline.register_modules(text_encoder=text_encoder)


def _new_engine() -> Accelerator:
    engine = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if engine.is_fsdp2:
        # Autocast chooses the precision of each operation, as on one device. FSDP by itself would round everything.
        engine.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    elif engine.distributed_type in _SHARDING:
        raise ConfigError(
            f"{engine.distributed_type.value} keeps models and optimizers in a way that checkpoints cannot hold: use"
            " FSDP with fsdp_version: 2, as examples/configs/accelerate/fsdp.yaml does."
        )
    return engine


_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""Of these, FSDP only in its first version."""


_STAGES = {
    "vae": TrainingRun._vae_stage,
    "prior": TrainingRun._prior_stage,
    "controlnet": TrainingRun._control_stage,
    "joint": TrainingRun._joint_stage,
}
