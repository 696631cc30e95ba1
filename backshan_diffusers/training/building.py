"""What each stage of a run trains, and the batches it trains on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from ..conditioning import LATENTS, blank_control, conditioning_parts, control_latents
from ..models import BackshanControlNetModel
from ..objective import PRESETS, Objective
from ..pipelines import BackToFrontPipeline
from .batches import (
    StepPairs,
    StepSampler,
    blank_some,
    cell_weights,
    crop_batch,
    crop_shape,
    disturbance_batch,
    kept_cells,
    latent_batch,
    noise_batch,
    picture_control_batch,
    timestep_batch,
)
from .caching import PairArrays, cache_edges, cache_latents, cache_prompts, encode, read_attributes, to_pixels
from .captions import caption
from .config import TrainingConfig, check
from .order import LikenessOrder, RandomOrder, describe_by_attributes, describe_by_look
from .schedule import noise_schedule
from .scratch import seeded
from .stage_module import Batch, StageModule
from .stages import AutoencoderStage, ControlStage, PriorStage

BatchMaker = Callable[[int, StepSampler], Batch]


class StageBuilder:
    """Makes what a run's stages train of its pipeline and its pairs.

    Args:
        config: of the run.
        accelerator: the engine; knows the processes and the device.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.output_dir = Path(config.output_dir)

    def build_stage(
        self, name: str, pipeline: BackToFrontPipeline, pairs: PairArrays
    ) -> tuple[StageModule, BatchMaker]:
        """What a stage trains, and its batches."""
        return _STAGES[name](self, self.config.stage(name), pipeline, pairs)

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

    def _edges(
        self, config, controlnet: BackshanControlNetModel, pairs: PairArrays, view: str, mirror: bool
    ) -> Callable[[StepPairs], np.ndarray | None]:
        """Where a step's edges come from: the cache, `B x S x S` uint8. None, if the ControlNet reads no edges or
        pictures are never the same twice, so that edges have to be found in the step. Arguments as of `_latents`."""
        augmentation, recorded = config.augmentation(), controlnet.config
        if "canny" not in conditioning_parts(recorded.conditioning) or augmentation.changes_pixels:
            return lambda step_pairs: None
        thresholds = recorded.canny_low_threshold, recorded.canny_high_threshold
        ways = (mirror, not mirror) if augmentation.flip else (mirror,)  # as they are, flipped at random
        cached = [cache_edges(pairs, thresholds, self._cache(), self.accelerator, view, way) for way in ways]

        def edges(step_pairs: StepPairs) -> np.ndarray:
            each = zip(step_pairs.indices.tolist(), step_pairs.flipped.tolist(), strict=True)
            return np.stack([cached[flipped][index] for index, flipped in each])

        return edges

    def _controls(
        self, config, controlnet: BackshanControlNetModel, pairs: PairArrays, view: str, mirror: bool
    ) -> Callable[[StepPairs, torch.Tensor | None], torch.Tensor]:
        """What a step's control tensors are made of: its pictures, or what `_latents` gives for them where latents
        enter. Arguments as there."""
        if controlnet.config.conditioning == LATENTS:
            return lambda step_pairs, latents: control_latents(latents, controlnet.config.image_size)
        edges = self._edges(config, controlnet, pairs, view, mirror)
        return lambda step_pairs, latents: picture_control_batch(
            step_pairs.pictures(view, mirror=False), controlnet, mirror, edges(step_pairs)
        )

    def _blank_control(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        """The control tensor of a white picture, `1 x K x S x S`."""
        recorded = pipeline.controlnet.config
        return blank_control(recorded.conditioning, recorded.image_size, pipeline.vae)[None]

    def _prompts(self, pipeline: BackToFrontPipeline) -> torch.Tensor:
        """Embeddings of the recorded prompt and of the empty one, `2 x T x E`; they are constants of the run."""
        prompts = [pipeline.controlnet.config.default_prompt, ""]
        return cache_prompts(prompts, pipeline, self._cache(), self.accelerator)

    def _captions(self, pipeline: BackToFrontPipeline, pairs: PairArrays) -> tuple[torch.Tensor, torch.Tensor]:
        """What pairs are told: embeddings, `N x T x E`, of the prompt, the empty one and those that captions make, and
        which of them is each pair's, int64."""
        rules, prompt = self.config.caption_rules(), pipeline.controlnet.config.default_prompt
        if not rules:
            return self._prompts(pipeline), torch.zeros(len(pairs.backs), dtype=torch.int64)
        texts = [caption(prompt, rules, each) for each in read_attributes(pairs, self._cache())]
        known = [*dict.fromkeys([prompt, "", *texts])]  # in an order that is the same in every process
        places = {text: place for place, text in enumerate(known)}
        embeddings = cache_prompts(known, pipeline, self._cache(), self.accelerator)
        return embeddings, torch.tensor([places[text] for text in texts])

    def _vae_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        check(
            isinstance(pipeline.vae, AutoencoderKL),
            f"the stage vae trains an AutoencoderKL, and that of the base_model is of the class"
            f" {type(pipeline.vae).__name__}: leave vae out of stages.",
        )
        config.check_crops(pipeline.controlnet.config.image_size, pipeline.vae_scale_factor)
        order, latent_channels = RandomOrder(len(pairs.backs)), pipeline.vae.config.latent_channels
        augmentation = config.augmentation()

        def make_batch(number: int, sampler: StepSampler) -> Batch:
            side, count = crop_shape(number, config.batch_size, config.crop_sizes)
            indices = sampler.indices(number, config.batch_size, order)[:count]
            step_pairs = StepPairs(pairs, indices, augmentation, sampler, number)
            batch = crop_batch(step_pairs, side, config.focus(), sampler.generator(number, "crop"))
            shape = (len(batch["pixels"]), latent_channels, *(2 * [side // pipeline.vae_scale_factor]))
            noise = torch.randn(shape, generator=sampler.generator(number, "noise"))
            return batch | {"noise": noise, "items": torch.from_numpy(indices)}

        weights = {name: getattr(config, name) for name in ("kl_weight", "edge_weight", "colour_weight")}
        return AutoencoderStage(pipeline.vae, config.keeps_latents, **weights), make_batch

    def _denoising(
        self, config, pipeline, pairs, objective: Objective, order: RandomOrder | LikenessOrder
    ) -> Callable[[int, StepSampler], tuple[Batch, StepPairs]]:
        """Batches of front latents with prompts, noise and timesteps, and the pairs they come from."""
        latents, (prompts, places) = self._latents(config, pipeline, pairs), self._captions(pipeline, pairs)
        augmentation = config.augmentation()
        span = pipeline.scheduler.config.num_train_timesteps, objective.timestep_shift

        def make_batch(number: int, sampler: StepSampler) -> tuple[Batch, StepPairs]:
            indices = sampler.indices(number, config.batch_size, order)
            step_pairs = StepPairs(pairs, indices, augmentation, sampler, number)
            drops = sampler.generator(number, "prompt")
            batch = latent_batch(latents(step_pairs), prompts, places[indices], drops, config.prompt_dropout)
            batch |= noise_batch(objective, batch["latents"], sampler.generator(number, "noise"))
            if objective.timesteps == "item":
                timesteps = timestep_batch(len(indices), *span, sampler.generator(number, "timestep"))
            else:
                step = number // config.gradient_accumulation_steps
                timesteps = timestep_batch(1, *span, sampler.shared_generator(step, "timestep")).repeat(len(indices))
            batch |= _cell_weights(step_pairs, config, pipeline.vae_scale_factor, pairs.faces is not None)
            return batch | {"timesteps": timesteps, "items": torch.from_numpy(indices)}, step_pairs

        return make_batch

    def _prior_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        denoising = self._denoising(config, pipeline, pairs, PRESETS["mse"], RandomOrder(len(pairs.backs)))
        schedule = noise_schedule(pipeline.scheduler)
        return PriorStage(pipeline.unet, schedule), lambda number, sampler: denoising(number, sampler)[0]

    def _control_stage(
        self, config, pipeline, pairs, train_unet: str | None = None, lora_rank: int | None = None
    ) -> tuple[StageModule, BatchMaker]:
        controlnet, objective = pipeline.controlnet, config.resolve_objective()
        denoising = self._denoising(config, pipeline, pairs, objective, self._order(config, pairs))
        compares_own = objective.compares_fronts and objective.front_latents == "own"
        mirror = controlnet.config.mirror
        back_latents = None
        if compares_own or controlnet.config.conditioning == LATENTS:
            back_latents = self._latents(config, pipeline, pairs, "backs", mirror)
        back_controls = self._controls(config, controlnet, pairs, "backs", mirror)
        front_controls = None
        if objective.compares_fronts:
            front_controls = self._controls(config, controlnet, pairs, "fronts", mirror=False)
        blank = self._blank_control(pipeline)

        def make_batch(number: int, sampler: StepSampler) -> Batch:
            batch, step_pairs = denoising(number, sampler)
            of_backs = back_latents and back_latents(step_pairs)
            controls, blanks = back_controls(step_pairs, of_backs), sampler.generator(number, "blank")
            batch["back_control"], shown = blank_some(controls, blank, blanks, config.condition_dropout)
            if objective.contrastive_weight:
                weight = objective.weight_at(number // config.gradient_accumulation_steps)
                batch["contrastive_weight"] = torch.tensor(weight)
                batch["shown"], batch["groups"] = shown, step_pairs.groups()
            if objective.coarse_weight:
                batch["coarse_weight"] = torch.tensor(objective.coarse_weight)
            if objective.adversarial_weight:
                weight = objective.adversarial_weight_at(number // config.gradient_accumulation_steps)
                batch["adversarial_weight"] = torch.tensor(weight)
                batch["fronts"] = to_pixels(step_pairs.fronts)
                batch["disturbance"] = disturbance_batch(
                    len(controls), controls.shape[-1], sampler.generator(number, "disturbance")
                )
            if objective.compares_fronts:
                batch["front_control"] = front_controls(step_pairs, batch["latents"])
                batch["blank_control"] = blank
            if compares_own:
                batch["back_latents"] = of_backs
            return batch

        schedule = noise_schedule(pipeline.scheduler)
        with seeded(config.seed):
            models = controlnet, pipeline.unet, schedule
            stage = ControlStage(*models, objective, train_unet, lora_rank, vae=pipeline.vae)
            return stage, make_batch

    def _order(self, config: TrainingConfig, pairs: PairArrays) -> RandomOrder | LikenessOrder:
        """The order in which pairs come."""
        if config.hard_negatives == "look":
            return LikenessOrder(describe_by_look(pairs.backs), config.hard_group_size)
        if config.hard_negatives == "attributes":
            descriptors = describe_by_attributes(read_attributes(pairs, self._cache()))
            return LikenessOrder(descriptors, config.hard_group_size)
        return RandomOrder(len(pairs.backs))

    def _joint_stage(self, config, pipeline, pairs) -> tuple[StageModule, BatchMaker]:
        return self._control_stage(config, pipeline, pairs, config.unlock_unet, config.unet_lora_rank)


def _cell_weights(step_pairs: StepPairs, config: TrainingConfig, factor: int, masked: bool) -> Batch:
    """How much each latent cell of a step counts, and how much without `unseen_weight`, `B x 1 x H x W`; either is
    left out where all count alike."""
    focus = config.focus()
    by_place = [cell_weights(step_pairs.weights(focus), factor)] if focus else []
    by_place += [kept_cells(step_pairs.faces(), factor)] if masked else []
    unseen = [cell_weights(step_pairs.unseen(config.unseen_weight), factor)] if config.unseen_weight > 1 else []
    weights = {"weights": by_place + unseen, "place_weights": by_place}
    return {name: math.prod(parts) for name, parts in weights.items() if parts}


_STAGES = {
    "vae": StageBuilder._vae_stage,
    "prior": StageBuilder._prior_stage,
    "controlnet": StageBuilder._control_stage,
    "joint": StageBuilder._joint_stage,
}
