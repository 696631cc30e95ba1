"""What of a finished run goes into the package: weights in half precision, and the record of how they were made."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import LCMScheduler, SchedulerMixin
from transformers import PreTrainedModel

from ..files import complete_file, complete_folder, put_back
from ..folder_check import without_origin
from ..model_record import AVERAGED, RECORD, record_of
from ..pipelines import BackToFrontPipeline
from .config import STAGES
from .schedule import noise_schedule

LIMIT = 40e6
"""Bytes that the embedded folder may have."""

_STAY = ("vae", "text_encoder")
_LEARN = ("unet", "controlnet")


def embed(
    run: Path,
    target: Path,
    steps: int | None = None,
    fresh_noise: bool = False,
    average_with: Path | None = None,
) -> int:
    """Put the last stage's pipeline at `target`, in half precision and without the paths of the run, with its config.

    The text encoder stays in float32: transformers loads weights in the type of their file, diffusers does not.

    Args:
        run: output folder of a training run.
        target: a folder that does not exist yet, or a pipeline that is replaced once the new one is complete.
        steps: denoising steps that the pipeline records as its default. None: those that it records already.
        fresh_noise: whether the pipeline gets the sampler of [`with_fresh_noise`] in place of its own.
        average_with: pipeline of an earlier run, with whose weights those of the run are averaged by [`average`].

    Returns:
        Size of the folder in bytes.

    Raises:
        ValueError: if the run is not finished, its pipeline is larger than `LIMIT`, `target` is something else, or
            what it is to be averaged with is no pipeline or does not fit.
    """
    put_back(target)
    finished = run / STAGES[-1] / "pipeline"
    if not (finished / BackToFrontPipeline.config_name).exists():
        raise ValueError(f"{run} holds no finished run: train one with examples/configs/mini.yaml first.")
    if target.exists() and not (target / BackToFrontPipeline.config_name).exists():
        raise ValueError(f"{target} is no pipeline, so it is not replaced: name a pipeline's folder or a new one.")
    pipeline = BackToFrontPipeline.from_pretrained(finished)
    if average_with is not None:
        if not (average_with / BackToFrontPipeline.config_name).exists():
            raise ValueError(f"{average_with} is no pipeline to average with: name the folder of a finished one.")
        average(pipeline, BackToFrontPipeline.from_pretrained(average_with))
    if steps is not None:
        pipeline.controlnet.register_to_config(default_num_inference_steps=steps)
    if fresh_noise:
        pipeline.scheduler = with_fresh_noise(pipeline.scheduler)
    for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
        model.to(torch.float16)
    with complete_folder(target) as pending:
        pipeline.save_pretrained(pending)
        for config in pending.glob("*/*config.json"):
            config.write_text(without_origin(config.read_text(encoding="utf-8")), encoding="utf-8")
        told = record_of(finished) | ({AVERAGED: True} if average_with is not None else {})
        text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
        (pending / RECORD).write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in pending.rglob("*") if path.is_file())
        if size > LIMIT:
            raise ValueError(
                f"the pipeline has {size / 1e6:.1f} MB, over the {LIMIT / 1e6:.0f} allowed: train a smaller one."
            )
    return size


def average(pipeline: BackToFrontPipeline, earlier: BackToFrontPipeline) -> None:
    """Give U-Net and ControlNet the means of their weights and those of an earlier pipeline that they went on from.

    Along one path of training the mean is often better than either end (Wortsman et al. 2022, "Model soups").

    Args:
        pipeline: is changed.
        earlier: of the same models, with the same latents, embeddings, control pictures and noise.

    Raises:
        ValueError: if the two differ in anything else. Weights that do not learn may be those of the other in half
            precision, as an embedded pipeline has them.
    """
    parts = {name: [getattr(each, name) for each in (pipeline, earlier)] for name in (*_STAY, *_LEARN)}
    differing = [name for name, pair in parts.items() if not _fit(*pair, stay=name in _STAY)]
    schedules = [noise_schedule(each.scheduler) for each in (pipeline, earlier)]
    kinds = [schedule.config.prediction_type for schedule in schedules]
    if kinds[0] != kinds[1] or not torch.equal(*(schedule.alphas_cumprod for schedule in schedules)):
        differing.append("scheduler")
    if differing:
        raise ValueError(
            f"the {differing[0]} of the pipeline to average with is another one: name one that the run went on from."
        )
    for name in _LEARN:
        ours, theirs = (model.state_dict() for model in parts[name])
        parts[name][0].load_state_dict({key: (weight + theirs[key]) / 2 for key, weight in ours.items()})


def _fit(ours: torch.nn.Module, theirs: torch.nn.Module, stay: bool) -> bool:
    """Whether two models are of one kind, and if they `stay` what they are, the same one."""
    weights = [model.state_dict() for model in (ours, theirs)]
    shapes = [{key: weight.shape for key, weight in each.items()} for each in weights]
    if shapes[0] != shapes[1] or _settings(ours) != _settings(theirs):
        return False
    return not stay or all(torch.equal(weight.half(), weights[1][key].half()) for key, weight in weights[0].items())


def _settings(model: torch.nn.Module) -> dict:
    """What a model's config says of how it computes and what it reads."""
    config = model.config.to_dict() if isinstance(model, PreTrainedModel) else dict(model.config)
    ignored = ("_", "default_", "dtype", "torch_dtype", "transformers_version")  # files, and what a call may leave out
    return {name: value for name, value in config.items() if not name.startswith(ignored)}


def with_fresh_noise(scheduler: SchedulerMixin) -> LCMScheduler:
    """The same noise schedule, sampled by adding fresh noise to the clean picture that each step predicts.

    This is the multistep sampling of Song et al. 2023, "Consistency models". Where a model is too small to follow the
    path of its own noise, what went wrong in one step is not carried on into the next.
    """
    steps = scheduler.config.num_train_timesteps
    return LCMScheduler.from_config(scheduler.config, original_inference_steps=steps)


def record(run: Path, folder: Path) -> None:
    """Copy the config, log and held-out L1 of each stage of a run, and draw their curves, as `curves.png`.

    Args:
        run: output folder of a training run.
        folder: is made if it is missing; its other files stay.
    """
    # here, because embedding alone draws nothing
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    stages = [name for name in STAGES if (run / name / "pipeline").exists()]
    figure = Figure(figsize=(4 * len(stages), 3), layout="constrained")
    for axis, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        log, held_out = run / stage / "metrics.jsonl", run / stage / "validation.csv"
        _copy(run / stage / RECORD, folder / f"{stage}.yaml")
        _copy(log, folder / f"{stage}.jsonl")
        _copy(held_out, folder / f"{stage}-validation.csv")
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        axis.plot([line["step"] for line in lines], [line["loss"] for line in lines], lw=0.6, label="training loss")
        rows = csv.reader(held_out.read_text(encoding="utf-8").splitlines())
        points = [(int(step), float(l1)) for step, l1, *_ in rows if step != "step"]
        axis.plot(*zip(*points, strict=True), "o-", label="held-out L1 in [0, 1]")
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend(fontsize="small")
    with complete_file(folder / "curves.png") as pending:
        figure.savefig(pending, dpi=80, format="png")


def _copy(source: Path, target: Path) -> None:
    with complete_file(target) as pending:
        shutil.copyfile(source, pending)
