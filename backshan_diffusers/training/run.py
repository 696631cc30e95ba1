"""A run: the stages one after the other, each from the folder that the one before it wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from filelock import FileLock, Timeout

from ..data import load_pairs
from ..objective import PRESETS
from ..pipelines import BackToFrontPipeline
from .base import open_base
from .batches import StepSampler, back_control_batch, crop_batch, crop_shape, front_control_batch, latent_batch
from .caching import PairArrays, cache_latents, cache_pairs
from .checkpoints import checkpoint_steps
from .config import ConfigError, TrainingConfig
from .files import full_disk_in_words
from .logs import append_line, csv_step, drop_later_lines
from .records import check_record, write_record
from .scratch import build_controlnet, build_pipeline
from .stages import AutoencoderStage, Batch, ControlStage, PriorStage, StageModule, noise_schedule
from .trainer import StageTrainer
from .validation import SHEET_ROWS, generate, mean_l1, rebuild, write_sheet
from .whitening import whiten_latents

BatchMaker = Callable[[int, StepSampler], Batch]

WHITENED_PICTURES = 1024
"""Training fronts from which the statistics of the latents are taken."""


PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which alone draws pairs, validates and writes."""


class TrainingRun:
    """Trains every stage of a config that is not finished yet.

    Args:
        config: what to train.
    """

    def __init__(self, config: TrainingConfig):
        self.config, self.accelerator = config, _new_engine()
        self.output_dir = Path(config.output_dir)

    def run(self) -> Path:
        """Run the stages; returns the folder of the finished pipeline.

        Raises:
            ConfigError: if there are no such pairs, the base cannot be used, the folder belongs to another run or
                another process trains in it.
            DiskFullError: if there is no room left for what a stage writes.
        """
        with self._alone(), full_disk_in_words(self.output_dir):
            source = None
            for name in self.config.stage_names():
                self._run_stage(name, source)
                source = self._finished(name)
        return source

    def start(self, folder: Path | None) -> BackToFrontPipeline:
        """The pipeline a stage begins with: the folder of the stage before, the base model, or random weights."""
        if folder is not None:
            pipeline = BackToFrontPipeline.from_pretrained(folder)
        elif self.config.base_model is not None:
            pipeline = open_base(self.config.base_model, self.config.seed, **self._recorded())
        else:
            pipeline = build_pipeline(self.config.model, self.config.seed, **self._recorded_from_nothing())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
        size = pipeline.controlnet.config.image_size
        train = self._pairs("train", config.train_pairs, size)
        held_out = self._pairs("validation", config.validation_pairs, size)
        folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_record(folder, record)
        module, make_batch = _STAGES[name](self, config, pipeline, train)
        trainer = StageTrainer(self.accelerator, module, make_batch, config, name, folder)
        if self.accelerator.is_main_process:
            drop_later_lines(folder / "validation.csv", trainer.step, csv_step)
        pipeline.to(self.accelerator.device)
        trainer.train(lambda step: self._validate(name, step, pipeline, held_out))
        with trainer.averaged_weights():
            self._finish(name, pipeline, train, finished)
        self.accelerator.wait_for_everyone()

    def _pairs(self, split: str, count: int, size: int) -> PairArrays:
        try:
            rows = load_pairs(self.config.source, split=split, size=size, count=count)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with self.accelerator.main_process_first():
            return cache_pairs(rows, self.output_dir / "cache", os.cpu_count() or 1)

    def _latents(self, pipeline: BackToFrontPipeline, pairs: PairArrays) -> torch.Tensor:
        vae = pipeline.vae.to(self.accelerator.device)
        return cache_latents(pairs, vae, self.output_dir / "cache", self.accelerator)

    @torch.no_grad()
    def _prompts(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        """Embeddings of the recorded prompt and of the empty one, `2 x T x E`; they are constants of the run."""
        prompts = [pipeline.controlnet.config.default_prompt, ""]
        return pipeline.encode_prompt(prompts, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]

    def _vae_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        def make_batch(step: int, sampler: StepSampler) -> Batch:
            side, count = crop_shape(step, config.batch_size, config.crop_sizes)
            indices = sampler.indices(step, config.batch_size, len(pairs.backs))[:count]
            crops = crop_batch(pairs, indices, side, sampler.generator(step, "crop"))
            return {**crops, "items": torch.from_numpy(indices)}

        config.check_crops(pipeline.controlnet.config.image_size, pipeline.vae_scale_factor)
        weights = {name: getattr(config, name) for name in ("kl_weight", "edge_weight", "colour_weight")}
        return AutoencoderStage(pipeline.vae, self.config.base_model is not None, **weights), make_batch

    def _prior_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        latents, prompts = self._latents(pipeline, pairs), self._prompts(pipeline)

        def make_batch(step: int, sampler: StepSampler) -> Batch:
            indices = sampler.indices(step, config.batch_size, len(latents))
            batch = latent_batch(latents, indices, prompts, sampler.generator(step, "prompt"), config.prompt_dropout)
            return {**batch, "items": torch.from_numpy(indices)}

        return PriorStage(pipeline.unet, noise_schedule(pipeline.scheduler)), make_batch

    def _control_stage(self, config, pipeline, pairs, train_unet: bool = False) -> tuple[StageModule, BatchMaker]:
        latents, prompts = self._latents(pipeline, pairs), self._prompts(pipeline)
        controlnet, objective = pipeline.controlnet, PRESETS[config.objective]

        def make_batch(step: int, sampler: StepSampler) -> Batch:
            indices = sampler.indices(step, config.batch_size, len(latents))
            batch = latent_batch(latents, indices, prompts, sampler.generator(step, "prompt"), config.prompt_dropout)
            blanks = sampler.generator(step, "blank")
            backs, shown = back_control_batch(pairs, indices, controlnet, blanks, config.condition_dropout)
            batch["back_control"], batch["items"] = backs, torch.from_numpy(indices)
            if objective.contrastive_weight:
                batch["shown"] = shown
                batch["front_control"] = front_control_batch(pairs, indices, controlnet)
                batch["groups"] = torch.from_numpy(pairs.groups[indices])
            return batch

        schedule = noise_schedule(pipeline.scheduler)
        return ControlStage(controlnet, pipeline.unet, schedule, objective, train_unet), make_batch

    def _joint_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        return self._control_stage(config, pipeline, pairs, train_unet=True)

    def _validate(self, name: str, step: int, pipeline: BackToFrontPipeline, pairs: PairArrays) -> None:
        """A sheet and the mean L1 of the held-out pairs, with the averaged weights in place."""
        if not self.accelerator.is_main_process:
            return
        if name == "vae":
            results = rebuild(pipeline.vae, pairs.fronts)
        else:
            shown = pairs.backs if name != "prior" else pairs.backs[:SHEET_ROWS]
            results = generate(pipeline, shown, self.config.seed)
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


def _new_engine() -> Accelerator:
    engine = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if engine.distributed_type in _SHARDING:
        raise ConfigError(
            f"{engine.distributed_type.value} cuts models up, and checkpoints hold whole ones: launch without it."
        )
    return engine


_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


_STAGES = {
    "vae": TrainingRun._vae_stage,
    "prior": TrainingRun._prior_stage,
    "controlnet": TrainingRun._control_stage,
    "joint": TrainingRun._joint_stage,
}
