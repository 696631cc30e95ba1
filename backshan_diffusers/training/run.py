"""A run: the stages one after the other, each from the folder that the one before it wrote."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

from ..objective import PRESETS
from ..pipelines import BackToFrontPipeline
from .batches import Draws, back_control_batch, crop_batch, front_control_batch, latent_batch
from .caching import PairArrays, cache_latents, cache_pairs, to_pixels
from .config import TrainingConfig
from .scratch import build_controlnet, build_pipeline
from .stages import AutoencoderStage, Batch, ControlStage, PriorStage, StageModule
from .trainer import StageTrainer
from .validation import SHEET_ROWS, generate, mean_l1, rebuild, write_sheet

BatchMaker = Callable[[int, Draws], Batch]


class TrainingRun:
    """Trains every stage of a config that is not finished yet.

    Args:
        config: what to train.
    """

    def __init__(self, config: TrainingConfig):
        self.config, self.accelerator = config, Accelerator()
        self.output_dir = Path(config.output_dir)

    def run(self) -> Path:
        """Run the stages; returns the folder of the finished pipeline."""
        source = None
        for name in self.config.stage_names():
            finished = self.output_dir / name / "pipeline"
            if not (finished / "model_index.json").exists():
                self._run_stage(name, self.start(source), finished)
            source = finished
        return source

    def start(self, folder: Path | None) -> BackToFrontPipeline:
        """The pipeline a stage begins with: the folder of the stage before, the base model, or random weights."""
        if folder is not None or self.config.base_model is not None:
            pipeline = BackToFrontPipeline.from_pretrained(folder or self.config.base_model)
        else:
            pipeline = build_pipeline(self.config.model, self.config.seed, **self._recorded())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _recorded(self) -> dict:
        """Config fields of a new ControlNet. A small model needs neither guidance nor many steps."""
        return {
            "conditioning": self.config.conditioning,
            "mirror": self.config.mirror,
            "default_prompt": self.config.prompt,
            "default_guidance_scale": 1.0,
            "default_num_inference_steps": 20,
        }

    def _run_stage(self, name: str, pipeline: BackToFrontPipeline, finished: Path) -> None:
        config = self.config.stage(name)
        folder = self.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        # A new engine for each stage: what the last stage registered for its checkpoints is no part of this one's.
        self.accelerator = Accelerator()
        self._record(config, name, folder)
        train, held_out = self._pairs("train", config.train_pairs), self._pairs("validation", config.validation_pairs)
        module, make_batch = _STAGES[name](self, config, pipeline, train)
        trainer = StageTrainer(self.accelerator, module, make_batch, config, name, folder)
        pipeline.to(self.accelerator.device)
        trainer.train(lambda step: self._validate(name, step, pipeline, held_out))
        with trainer.averaged_weights():
            self._finish(name, pipeline, train, finished)
        self.accelerator.wait_for_everyone()

    def _pairs(self, split: str, count: int) -> PairArrays:
        size = self.config.model.image_size
        with self.accelerator.main_process_first():
            return cache_pairs(self.config.source, split, size, count, self.output_dir / "cache", os.cpu_count() or 1)

    def _latents(self, pipeline: BackToFrontPipeline, pairs: PairArrays) -> torch.Tensor:
        vae = pipeline.vae.to(self.accelerator.device)
        return cache_latents(pairs, vae, self.output_dir / "cache", self.accelerator)

    @torch.no_grad()
    def _prompts(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        """Embeddings of the run's prompt and of the empty one, `2 x T x E`; they are constants of the run."""
        prompts = [self.config.prompt, ""]
        return pipeline.encode_prompt(prompts, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]

    def _vae_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        def make_batch(step: int, draws: Draws) -> Batch:
            indices = draws.indices(step, config.batch_size, len(pairs.backs))
            side = config.crop_sizes[step % len(config.crop_sizes)]
            fitting = max(1, config.batch_size * min(config.crop_sizes) ** 2 // side**2)
            return crop_batch(pairs, indices[:fitting], side, draws.generator(step, "crop"))

        weights = (config.kl_weight, config.edge_weight, config.colour_weight)
        return AutoencoderStage(pipeline.vae, *weights), make_batch

    def _prior_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        latents, prompts = self._latents(pipeline, pairs), self._prompts(pipeline)

        def make_batch(step: int, draws: Draws) -> Batch:
            indices = draws.indices(step, config.batch_size, len(latents))
            return latent_batch(latents, indices, prompts, draws.generator(step, "prompt"), config.prompt_dropout)

        return PriorStage(pipeline.unet, pipeline.scheduler), make_batch

    def _control_stage(self, config, pipeline, pairs, train_unet: bool = False) -> tuple[StageModule, BatchMaker]:
        latents, prompts = self._latents(pipeline, pairs), self._prompts(pipeline)
        controlnet, objective = pipeline.controlnet, PRESETS[config.objective]

        def make_batch(step: int, draws: Draws) -> Batch:
            indices = draws.indices(step, config.batch_size, len(latents))
            batch = latent_batch(latents, indices, prompts, draws.generator(step, "prompt"), config.prompt_dropout)
            blanks = draws.generator(step, "blank")
            batch["back_control"] = back_control_batch(pairs, indices, controlnet, blanks, config.condition_dropout)
            if objective.contrastive_weight:
                batch["front_control"] = front_control_batch(pairs, indices, controlnet)
                batch["groups"] = torch.from_numpy(pairs.groups[indices])
            return batch

        return ControlStage(controlnet, pipeline.unet, pipeline.scheduler, objective, train_unet), make_batch

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
        with open(self.output_dir / name / "validation.csv", "a", encoding="utf-8") as file:
            file.write(f"{step},{mean_l1(results, pairs.fronts):.6f}\n")

    def _finish(self, name: str, pipeline: BackToFrontPipeline, pairs: PairArrays, folder: Path) -> None:
        """Write the stage's pipeline folder, complete or not at all."""
        if not self.accelerator.is_main_process:
            return
        if name == "vae":
            scaling = _latent_scaling(pipeline, pairs)
            pipeline.vae.register_to_config(scaling_factor=scaling)
        if name == "prior":
            recorded = {**self._recorded(), "load_weights_from_unet": True}
            pipeline.register_modules(controlnet=build_controlnet(pipeline.unet, self.config.model, **recorded))
        for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
            model.to(memory_format=torch.contiguous_format)  # safetensors writes nothing else
        pending = folder.with_suffix(".tmp")
        shutil.rmtree(pending, ignore_errors=True)
        pipeline.save_pretrained(pending)
        pending.rename(folder)

    def _record(self, config: TrainingConfig, name: str, folder: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        packages = ("torch", "diffusers", "transformers", "accelerate", "numpy")
        record = {
            **asdict(config),
            "stage": name,
            "processes": self.accelerator.num_processes,
            "packages": {package: version(package) for package in packages} | {"python": platform.python_version()},
        }
        text = yaml.safe_dump(record, sort_keys=False)
        (folder / "training_config.yaml").write_text(text, encoding="utf-8")


_STAGES = {
    "vae": TrainingRun._vae_stage,
    "prior": TrainingRun._prior_stage,
    "controlnet": TrainingRun._control_stage,
    "joint": TrainingRun._joint_stage,
}


@torch.no_grad()
def _latent_scaling(pipeline: BackToFrontPipeline, pairs: PairArrays, count: int = 256) -> float:
    """What latents are multiplied by so that their standard deviation is 1, measured on training fronts."""
    vae = pipeline.vae
    parts = [
        vae.encode(to_pixels(pairs.fronts[start : start + 32]).to(vae.device)).latent_dist.mean
        for start in range(0, min(count, len(pairs.fronts)), 32)
    ]
    return round(1 / float(torch.cat(parts).std()), 6)
