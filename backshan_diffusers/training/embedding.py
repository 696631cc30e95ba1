"""What of a finished run goes into the package: weights in half precision, and the record of how they were made."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import LCMScheduler, SchedulerMixin

from ..files import complete_file, complete_folder, put_back
from ..folder_check import without_origin
from ..model_record import AVERAGED, RECORD, record_of
from ..pipelines import BackToFrontPipeline
from .config import STAGES
from .soup import average

LIMIT = 40e6
"""Bytes that the embedded folder may have."""


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
    pipeline = _open(finished, average_with)
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


def _open(finished: Path, average_with: Path | None) -> BackToFrontPipeline:
    """The pipeline of a finished run, averaged with that of another folder if there is one."""
    pipeline = BackToFrontPipeline.from_pretrained(finished)
    if average_with is not None:
        if not (average_with / BackToFrontPipeline.config_name).exists():
            raise ValueError(f"{average_with} is no pipeline to average with: name the folder of a finished one.")
        average(pipeline, BackToFrontPipeline.from_pretrained(average_with))
    return pipeline


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
