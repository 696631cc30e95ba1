"""The loop of one stage: steps, averaged weights, checkpoints, a plain log."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, gather_object
from torch.distributed.fsdp import register_fsdp_forward_method
from tqdm.auto import tqdm

from .batches import StepSampler
from .checkpoints import checkpoint_path, clear_leftovers, load_checkpoint, newest_sound_step, save_checkpoint
from .config import ConfigError, TrainingConfig
from .logs import append_line, drop_later_lines, json_step, peak_memory
from .probes import doubt, probe_stage
from .savings import AveragedWeights, autocast, compile_blocks, new_optimizer, round_frozen, save_activations
from .sharding import Whole, averaged_copies, put_together, whole_copies
from .stage_module import Batch, StageModule, Terms, learning
from .zero import PartedOptimizer

_logger = logging.getLogger(__name__)

TOLD = ("initial_lr", "betas", "weight_decay")
"""What the config says of a group of weights, by the names that torch's optimizers and schedules give it."""

OWN_RATES = {
    "unet": "unet_learning_rate",
    "unet_lora": "unet_learning_rate",
    "discriminator": "discriminator_learning_rate",
}
"""Models that may have a rate of their own beside a ControlNet, and what it is called."""

DECAY_SHARE = 0.3
"""The learning rate stays at its height until this share of the steps is left, then falls to 0 in a line.

A run may so be lengthened while it is at its height without having taken a single step too slow."""


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up, a plateau, and a linear end: the share of the highest learning rate at `step` (from 0)."""
    warmup = (step + 1) / max(warmup_steps, 1)
    decay = (max_steps - step) / max(max_steps - decay_begins(max_steps), 1)
    return max(min(warmup, decay, 1.0), 0.0)


def decay_begins(max_steps: int) -> float:
    """The last step at which the learning rate is at its height."""
    return (1 - DECAY_SHARE) * max_steps


def parameter_groups(module: StageModule, config: TrainingConfig) -> dict[str, dict]:
    """What learns, for the optimizer, by the name of its rate; beside a ControlNet some models may have their own."""
    models, own = dict(module.named_trained()), {}
    for name, rate in OWN_RATES.items():
        if {name, "controlnet"} <= models.keys() and getattr(config, rate) is not None:
            own[rate] = {"params": learning(models[name]), "lr": getattr(config, rate)}
    elsewhere = {weight for group in own.values() for weight in group["params"]}
    return {"learning_rate": {"params": [each for each in learning(module) if each not in elsewhere]}, **own}


class StageTrainer:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
        accelerator: the engine; everything distributed goes through it.
        module: the stage's loss with its models.
        make_batch: `(number, sampler) -> Batch` on the CPU, a function of its arguments alone; micro-batches are
            numbered from the stage's first. Its `items` are the places of its pairs in the training data.
        config: the stage's config.
        name: the stage's name.
        folder: where checkpoints and `metrics.jsonl` go.
        names_of: what the pairs at some places in the training data are called, for a person who looks for them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: StageModule,
        make_batch: Callable[[int, StepSampler], Batch],
        config: TrainingConfig,
        name: str,
        folder: Path,
        names_of: Callable[[Sequence[int]], Sequence[str]] = lambda places: [*map(str, places)],
    ):
        self.names_of = names_of
        self.accelerator, self.make_batch, self.config, self.folder = accelerator, make_batch, config, folder
        self.sampler = StepSampler(config.seed, name, accelerator.process_index, accelerator.num_processes)
        self.models = dict(module.named_trained())
        groups = parameter_groups(module, config)
        optimizer = new_optimizer([*groups.values()], config, accelerator)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, config.warmup_steps, config.max_steps)
        )
        for model in module.frozen.values():
            round_frozen(model.to(accelerator.device), accelerator)
        self.shown = whole_copies(self.models) if accelerator.is_fsdp2 else self.models
        self.parted = None
        is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if config.channels_last and not (accelerator.is_fsdp2 or is_deepspeed):  # which cut up no such weights
            for model in module.models():
                model.to(memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            save_activations(module)
        if config.compile != "none":
            compile_blocks(module, config.compile)
        # The schedule counts steps of the run. Left to accelerate, it would advance once for each process.
        if is_deepspeed:
            self.parted = PartedOptimizer(module, optimizer, accelerator)
            self.module, self.optimizer = self.parted.module, optimizer
        else:
            self.module, self.optimizer = accelerator.prepare(module, optimizer)
        for method in ("compare", "probe"):
            register_fsdp_forward_method(self.module, method)  # if it is cut up, it is put together for this too
        self.schedule = schedule
        self.averages = {
            name: AveragedWeights(learning(model), config.ema_decay) for name, model in self.models.items()
        }
        self.states = {"model": module, "optimizer": self.parted or self.optimizer, "schedule": schedule}
        self.states |= {f"average_{name}": average for name, average in self.averages.items()}
        if accelerator.scaler is not None:
            self.states["scaler"] = accelerator.scaler
        if accelerator.is_fsdp2:
            self.states = {name: Whole(state) for name, state in self.states.items()}
        self.rates = dict.fromkeys(groups, 0.0)  # of the last step
        self.step = self.saved_step = self._resume()

    def _resume(self) -> int:
        """Take up the newest sound checkpoint, if there is one; returns the number of steps that are done."""
        main, step = self.accelerator.is_main_process, 0
        if main:
            clear_leftovers(self.folder)
            step = newest_sound_step(self.folder)
        step = int(broadcast(torch.tensor(step, device=self.accelerator.device)))
        if step:
            self._load(checkpoint_path(self.folder, step))
        for average in self.averages.values():
            average.to(self.accelerator.device)
        if main:
            drop_later_lines(self.folder / "metrics.jsonl", step, json_step)
        return step

    def _load(self, checkpoint: Path) -> None:
        told = [{name: group[name] for name in TOLD} for group in self.optimizer.param_groups]
        try:
            load_checkpoint(checkpoint, self.states)
        except (RuntimeError, ValueError, KeyError) as error:  # what torch and we raise for states of another shape
            what = str(error).strip().splitlines()[-1].strip().rstrip(".")
            raise ConfigError(
                f"{checkpoint} does not fit what is trained now ({what}): give another output_dir."
            ) from error
        self._lay_moments_out()
        self._hold_to(told)

    def _hold_to(self, told: list[dict]) -> None:
        """Let the config's rates, decays and moments hold, not those of the checkpoint: a change may be accepted.

        Args:
            told: `TOLD` of each group of weights.
        """
        for average in self.averages.values():
            average.decay = self.config.ema_decay
        self.schedule.base_lrs = [values["initial_lr"] for values in told]
        for group, values, factor in zip(self.optimizer.param_groups, told, self.schedule.lr_lambdas, strict=True):
            group.update(values, lr=values["initial_lr"] * factor(self.schedule.last_epoch))

    def _lay_moments_out(self) -> None:
        """Let moments lie in memory as their weights do: a fused optimizer takes it for granted, and a checkpoint of
        models that were cut up, or had their channels elsewhere, holds them otherwise."""
        for weight, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                    moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def train(
        self, on_validate: Callable[[int], None], on_checkpoint: Callable[[int], None] = lambda step: None
    ) -> None:
        """Run the steps that are left.

        Args:
            on_validate: called with the step, and with the averaged weights in place.
            on_checkpoint: called with the step when its checkpoint is complete.
        """
        config, total = self.config, self.config.max_steps
        bar = tqdm(
            range(self.step, total),
            initial=self.step,
            total=total,
            desc=self.sampler.stage,
            disable=not self.accelerator.is_local_main_process,
        )
        began, recent, items = time.perf_counter(), [], 0
        for _ in bar:
            terms, seen = self.advance()
            recent.append(terms)
            items += seen * self.accelerator.num_processes
            if self.step % config.log_every == 0 or self.step == total:
                terms = _means(gather_object([_means(recent)]))
                self._log(terms, items / (time.perf_counter() - began))
                bar.set_postfix(loss=f"{terms['loss']:.4f}")
                began, recent, items = time.perf_counter(), [], 0
            if self.step % config.validate_every == 0 or self.step == total:
                paused = time.perf_counter()
                with self.averaged_weights():
                    on_validate(self.step)
                began += time.perf_counter() - paused
            # Last, so that a run that goes on from a checkpoint has lost nothing that belongs to its steps.
            if self.step % config.checkpoint_every == 0 or self.step == total:
                self._save()
                on_checkpoint(self.step)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.step, self.states, self.config.checkpoints_total_limit)
        else:
            for state in self.states.values():
                state.state_dict()  # what is cut up is put together by all, in the same order
        self.accelerator.wait_for_everyone()
        self.saved_step = self.step

    def advance(self) -> tuple[Terms, int]:
        """One optimiser step; returns the terms of the loss with the norms of the gradients and what was probed, and
        how many pairs it saw."""
        probed = self._probe() if (self.step + 1) % self.config.probe_every == 0 else {}
        terms, items = self._accumulate()
        # Once for all models: they share the optimizer, whose gradients may be unscaled only once.
        self.accelerator.unscale_gradients(self.optimizer)
        clip = self.parted.clip if self.parted else torch.nn.utils.clip_grad_norm_
        for name, model in self.models.items():
            norm = put_together(clip(learning(model), self.config.max_grad_norm))
            if self.accelerator.scaler is None:  # a loss scaler skips such a step by itself
                self._check_finite(f"gradient norm of the {name}", norm, items)
            terms[f"grad_norm_{name}"] = norm
        if self.parted:
            self.parted.step()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.rates = {name: group["lr"] for name, group in zip(self.rates, self.optimizer.param_groups, strict=True)}
        self.schedule.step()
        if self.accelerator.optimizer_step_was_skipped:
            self._check_scale(items)
        else:
            for name, model in self.models.items():
                self.averages[name].step(learning(model))
        self.step += 1
        return terms | probed, len(items)

    def _probe(self) -> Terms:
        """What is measured before this step on its first micro-batch, by every process, and changes nothing."""
        with autocast(self.accelerator):
            return probe_stage(self.accelerator.unwrap_model(self.module), next(self._batches()))

    def _batches(self) -> Iterator[Batch]:
        """The micro-batches of this step, on the device, one at a time; the same ones whenever they are asked for.

        So is the dropout of each: it draws from torch's own generators, which depend on nothing but its number.
        """
        parts = self.config.gradient_accumulation_steps
        for number in range(self.step * parts, (self.step + 1) * parts):
            batch = self.make_batch(number, self.sampler)
            torch.manual_seed(self.sampler.generator(number, "dropout").initial_seed())
            yield {name: self._placed(tensor) for name, tensor in batch.items()}

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device; pictures and latents with the channels last if the models lie so."""
        is_picture = tensor.ndim == 4 and self.config.channels_last
        layout = torch.channels_last if is_picture else torch.preserve_format
        return tensor.to(self.accelerator.device, memory_format=layout)

    def _accumulate(self) -> tuple[Terms, torch.Tensor]:
        """Leave the gradient of the micro-batches' mean loss in the weights; returns the mean terms and the items."""
        parts, whole = self.config.gradient_accumulation_steps, []
        if self.config.cached_contrast:
            with autocast(self.accelerator):
                whole = self.accelerator.unwrap_model(self.module).compare(self._batches())
        if whole and not torch.isfinite(term := whole[0].terms["contrastive"]):
            raise self._not_finite("contrastive term", term, torch.cat([batch["items"] for batch in self._batches()]))
        made, items = [], []
        for part, batch in enumerate(self._batches()):
            together = (whole[part], parts) if whole else ()
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                with autocast(self.accelerator):
                    terms = self.module(batch, *together)
                self._check_finite("loss", terms["loss"], batch["items"])
                if self.parted:
                    self.parted.backward(terms["loss"] / parts, last)
                else:
                    self.accelerator.backward(terms["loss"] / parts)
            made.append({name: term.detach() for name, term in terms.items()})
            items.append(batch["items"])
        return {name: _mean(name, [terms[name] for terms in made]) for name in made[0]}, torch.cat(items)

    def _check_scale(self, items: torch.Tensor) -> None:
        """A loss scaler halves its scale with each step it skips, for ever where gradients are never finite."""
        if self.accelerator.scaler.get_scale() < 1:
            self._check_finite("gradient norm of every scale", torch.tensor(torch.nan), items)

    def _check_finite(self, name: str, value: torch.Tensor, items: torch.Tensor) -> None:
        """Stop before a broken value reaches the weights, and with them the next checkpoint."""
        if not torch.isfinite(value):
            raise self._not_finite(name, value, items)

    def _not_finite(self, name: str, value: torch.Tensor, items: torch.Tensor) -> FloatingPointError:
        saved, pairs = "nothing is saved yet", ", ".join(self.names_of(items.tolist()))
        if self.saved_step:
            saved = f"{checkpoint_path(self.folder, self.saved_step)} is good"
        return FloatingPointError(
            f"the {name} is {value.item()} at step {self.step} of {self.sampler.stage}, with the training pairs"
            f" {pairs}: look at them, lower learning_rate, or use full precision; {saved}."
        )

    @contextmanager
    def averaged_weights(self):
        """Within, the models of `shown` hold their averaged weights and are in evaluation mode.

        They are the trained models, or copies of them on the first process if those are cut up.
        """
        if self.accelerator.is_fsdp2:
            with averaged_copies(self.shown, self.averages):
                yield
            return
        for name, model in self.models.items():
            self.averages[name].change_places(learning(model))
            model.eval()
        try:
            yield
        finally:
            for name, model in self.models.items():
                self.averages[name].change_places(learning(model))
                model.train()

    def _log(self, terms: dict[str, float], images_per_second: float) -> None:
        """One line: the means of the terms since the last one, on the main process."""
        if not self.accelerator.is_main_process:
            return
        values = {
            # JSON knows no others; a step that the loss scaler skips has them.
            **{name: round(value, 6) if math.isfinite(value) else None for name, value in terms.items()},
            **self.rates,
            "images_per_second": round(images_per_second, 2),
            "peak_memory_mib": round(peak_memory(self.accelerator.device)),
        }
        if (words := doubt(values)) is not None:
            values["doubt"] = words
            _logger.warning("step %d of %s: %s", self.step, self.sampler.stage, words)
        line = {"stage": self.sampler.stage, "step": self.step, **values}
        append_line(self.folder / "metrics.jsonl", json.dumps(line))
        self.accelerator.log(values, step=self.step)


def _means(parts: Sequence[Mapping[str, torch.Tensor | float]]) -> dict[str, float]:
    """Of each term, over the steps, or the processes, that have it: what is probed is not there at every step."""
    names = dict.fromkeys(name for terms in parts for name in terms)
    return {name: float(_mean(name, [terms[name] for terms in parts if name in terms])) for name in names}


def _mean(name: str, values: Sequence[torch.Tensor | float]) -> torch.Tensor:
    """Batches that show no back have no accuracy; whatever else is no number has to be seen."""
    stacked = torch.stack([*map(torch.as_tensor, values)])
    return stacked.nanmean() if name == "pair_accuracy" else stacked.mean()
