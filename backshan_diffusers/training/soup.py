"""The mean of two models along one path of training, a model soup (Wortsman et al. 2022)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..pipelines import BackToFrontPipeline
from .schedule import noise_schedule

STAY = ("vae", "text_encoder")
LEARN = ("unet", "controlnet")


def average(pipeline: BackToFrontPipeline, earlier: BackToFrontPipeline) -> None:
    """Give U-Net and ControlNet the means of their weights and those of an earlier pipeline that they went on from.

    Where training went up and down around something, the middle is often better than either end.

    Args:
        pipeline: is changed.
        earlier: of the same models, with the same latents, embeddings, control pictures and noise.

    Raises:
        ValueError: if the two differ in anything else. Weights that do not learn may be those of the other in half
            precision, as an embedded pipeline has them.
    """
    parts = {name: [getattr(each, name) for each in (pipeline, earlier)] for name in (*STAY, *LEARN)}
    differing = [name for name, pair in parts.items() if not _fit(*pair, stay=name in STAY)]
    schedules = [noise_schedule(each.scheduler) for each in (pipeline, earlier)]
    kinds = [schedule.config.prediction_type for schedule in schedules]
    if kinds[0] != kinds[1] or not torch.equal(*(schedule.alphas_cumprod for schedule in schedules)):
        differing.append("scheduler")
    if differing:
        raise ValueError(
            f"the {differing[0]} of the pipeline to average with is another one: name one that the run went on from."
        )
    for name in LEARN:
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
    ignored = ("_", "default_", "dtype", "transformers_version")  # files, and what a call may leave out
    return {name: value for name, value in config.items() if not name.startswith(ignored)}
