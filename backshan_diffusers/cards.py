"""What a repository's `README.md` says: the card of a model or of pairs, filled from the files that are pushed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from .data import DRAWN
from .folder_check import ADAPTERS, lone_variant, stored_variant
from .model_record import AVERAGED, UNTOLD, base_in, beside, is_embedded, record_of

PACKAGE = Path(__file__).parent
MARK = "Written by backshan_diffusers at each push. Remove this line to keep a card of your own."
"""A card without it is somebody's own and stays as it is."""

TAGS = ("backshan-diffusers", "controlnet", "stable-diffusion", "back-to-front")
PIPELINE_TAG = "image-to-image"
SHEET = "sheet.png"
EVALUATION = "evaluation.json"
USUAL_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""With what a ControlNet is shown that records no base, where its prompts are as wide as it needs them."""

WIDTH_OF_ITS_PROMPTS = 768

WITH_ADAPTERS = (
    "The ControlNet was trained together with LoRA adapters of the U-Net, which are a file of this repository:"
    " `load_lora_weights` puts them in, and needs `peft`."
)


def model_card(folder: Path, repo_id: str, license: str | None = None) -> str:
    """The card of a pipeline or of a ControlNet.

    Args:
        folder: of the model. `training_config.yaml`, `evaluation.json` (what `benchmarks/mini_quality.py --json`
            writes) and `sheet.png` are looked for in it and, if a training run wrote it, beside it.
        repo_id: where it goes.
        license: identifier of the weights' licence, as the Hub has them.

    Raises:
        ValueError: if one of these files cannot be read.
    """
    is_pipeline = (folder / "model_index.json").is_file()
    config = json.loads((folder / ("controlnet/config.json" if is_pipeline else "config.json")).read_text("utf-8"))
    record, evaluation = record_of(folder), _evaluation(folder)
    base, name = base_in(record), repo_id.rpartition("/")[2]
    variant = (lone_variant if is_pipeline else stored_variant)(folder)
    ways = (
        _ways_of_a_pipeline(repo_id, config, variant, (folder / ADAPTERS).is_file())
        if is_pipeline
        else _ways_of_a_controlnet(repo_id, config, base, variant)
    )
    licence = license or ("apache-2.0" if is_embedded(folder) or _from_nothing(record) else "other")
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag=PIPELINE_TAG,
        base_model=base,
        tags=list(TAGS),
        model_name=name,
        eval_results=_eval_results(evaluation) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(PACKAGE / "model_card.md"),
        mark=MARK,
        name=name,
        what="pipeline" if is_pipeline else "ControlNet",
        conditioning=config["conditioning"],
        mirror=config["mirror"],
        image_size=config["image_size"],
        sheet="![Back, generated front and true front](sheet.png)" if beside(folder, SHEET) else "",
        how_to_use=ways,
        training=_training(record),
        evaluation=_table(evaluation),
        data_limits=" Those were drawn by code: photographs do not work." if record.get("source") in DRAWN else "",
        licence=_licence(licence, license is None, base),
    )
    return str(card)


def dataset_card(
    splits: Mapping[str, tuple[int, int]], masks: Sequence[str], size: int, source: str, repo_id: str, license: str
) -> str:
    """The card of pairs.

    Args:
        splits: pairs and groups of each split.
        masks: columns that there are of them.
        size: side of the pictures in px.
        source: name of the source they were read from.
        repo_id: where they go.
        license: identifier of the pictures' licence, as the Hub has them.
    """
    lines = ["| split | pairs | outfits |", "|---|---:|---:|"]
    lines += [f"| {split} | {pairs} | {groups} |" for split, (pairs, groups) in splits.items()]
    data = DatasetCardData(
        license=license, task_categories=[PIPELINE_TAG], tags=["backshan-diffusers", "people", "clothing"]
    )
    drawn = source in DRAWN
    card = DatasetCard.from_template(
        data,
        template_path=str(PACKAGE / "dataset_card.md"),
        mark=MARK,
        name=repo_id.rpartition("/")[2],
        size=size,
        source=source,
        splits="\n".join(lines),
        masks=f"The columns {', '.join(f'`{mask}`' for mask in masks)} are masks (0 outside, 255 inside)."
        if masks
        else "",
        how_to_read=_fenced("python", _reading(repo_id, next(iter(splits)), size)),
        people="All pictures were drawn by code: there is no person behind them."
        if drawn
        else "Pictures of people are personal: only those of people who consented belong here.",
        licence=f"The pairs: {license}.",
    )
    return str(card)


def is_ours(card: str) -> bool:
    """Whether a card was written here and nobody claimed it."""
    return MARK in card


def _from_nothing(record: Mapping[str, Any]) -> bool:
    """Whether nothing but this package went into the weights."""
    all_along = [record, *(record | change["before"] for change in record.get("accepted", []))]
    return all(each.get("source") in DRAWN and each.get("base_model", UNTOLD) is None for each in all_along)


def _evaluation(folder: Path) -> dict[str, Any] | None:
    file = beside(folder, EVALUATION)
    if file is None:
        return None
    try:
        report = json.loads(file.read_text("utf-8"))
        report["results"]["systems"]["generated"], report["tables"][0]["rows"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file} is no report of benchmarks/mini_quality.py: write it again.") from error
    return report


def _eval_results(evaluation: dict[str, Any] | None) -> list[EvalResult]:
    """The means of the model itself, for the card's `model-index`."""
    if evaluation is None:
        return []
    results = evaluation["results"]
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="back to front",
            dataset_type="wardrobe",
            dataset_name=f"wardrobe, {results['count']} pairs of {results['size_px']} px",
            dataset_split=results["split"],
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=value["mean"],
        )
        for metric, value in results["systems"]["generated"].items()
    ]


def _table(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured."
    table = evaluation["tables"][0]
    lines = [table["columns"], ["---", *["---:"] * (len(table["columns"]) - 1)], *table["rows"]]
    return "\n".join([f"{table['title']}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _training(record: Mapping[str, Any]) -> str:
    if not record:
        return "Not recorded."
    told = _fenced("yaml", yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True))
    if not {"stage", "max_steps", "batch_size", "source"} <= record.keys():
        return f"All that is recorded:\n\n{told}"
    steps = f"{record['steps_done']} of {record['max_steps']}" if "steps_done" in record else record["max_steps"]
    pairs = math.prod(record.get(factor, 1) for factor in ("batch_size", "gradient_accumulation_steps", "processes"))
    most = "up to " if record["stage"] == "vae" else ""  # larger crops come from fewer pairs
    sentences = [
        f"Stage `{record['stage']}`: {steps} steps of {most}{pairs} pairs of the source `{record['source']}`."
    ]
    if record.get("base_model") is not None:
        base = base_in(record)
        base = f"`{base}`" if base else "another model, which lay in a folder"
        sentences.append(f"The run went on from {base}: the steps that were taken until then are not counted.")
    if record.get("accepted"):
        sentences.append("The first steps had other values, as `accepted` says.")
    if record.get(AVERAGED):
        sentences.append("U-Net and ControlNet are the means of those of this run and of an earlier model.")
    if record.get("captions"):
        sentences.append("A prompt may go on, after commas, with the words of `captions`.")
    return f"{' '.join(sentences)} All settings of this stage:\n\n{told}"


def _licence(licence: str, is_guess: bool, base: str | None) -> str:
    if licence != "other" or not is_guess:
        return f"The weights: {licence}. The code of `backshan_diffusers`: Apache-2.0."
    of_base = f" The licence of the base model, `{base}`, holds for them too." if base else ""
    return (
        "The owner of this repository has not named a licence for the weights: ask before you use them."
        f"{of_base} The code of `backshan_diffusers`: Apache-2.0."
    )


def _ways_of_a_pipeline(repo_id: str, config: Mapping[str, Any], variant: str | None, has_adapters: bool) -> str:
    asked = _asked(variant)
    # by its name, because without one the Hub is asked for it even where all files are there
    adapters = f'pipe.load_lora_weights("{repo_id}", weight_name="{ADAPTERS}")\n' if has_adapters else ""
    # transformers opens weights in the type of their file, diffusers in float32; our own class sees to that
    in_one_type = asked and f"{asked}, dtype=torch.float32"
    imports = "import torch\n" if asked else ""
    ours = f"""
from backshan_diffusers import BackToFrontPipeline

pipe = BackToFrontPipeline.from_pretrained("{repo_id}"{asked})
{adapters}front = pipe("back.png").images[0]
"""
    carried = f"""
{imports}from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    "{repo_id}", custom_pipeline="{repo_id}", trust_remote_code=True{in_one_type}
)
{adapters}front = pipe("back.png").images[0]
"""
    stock = f"""{_control(config, "StableDiffusionControlNetPipeline")}

pipe = StableDiffusionControlNetPipeline.from_pretrained("{repo_id}"{in_one_type})
{adapters}{_encoding(config)}front = pipe({config["default_prompt"]!r}, image=control, {_settings(config)}).images[0]
"""
    return "\n\n".join(
        [
            *([WITH_ADAPTERS] if has_adapters else []),
            f"With `backshan_diffusers`:\n\n{_fenced('python', ours)}",
            "With diffusers alone, by the code that lies in this repository. Look at it first; it needs"
            f" opencv-python-headless too:\n\n{_fenced('python', carried)}",
            f"With diffusers alone and a control picture made by hand:\n\n{_fenced('python', stock)}",
            "Its ControlNet with another base model of the same shape, here with its own:\n\n"
            f"{_fenced('python', _combined(repo_id, repo_id, 'controlnet', asked, asked, adapters))}",
        ]
    )


def _ways_of_a_controlnet(repo_id: str, config: Mapping[str, Any], base: str | None, variant: str | None) -> str:
    if base is None:
        base = USUAL_BASE if config["cross_attention_dim"] == WIDTH_OF_ITS_PROMPTS else "OWNER/ITS-BASE-MODEL"
    asked = _asked(variant)
    stock = f"""{_control(config, "ControlNetModel, StableDiffusionControlNetPipeline")}

controlnet = ControlNetModel.from_pretrained("{repo_id}"{asked})
pipe = StableDiffusionControlNetPipeline.from_pretrained("{base}", controlnet=controlnet)
{_encoding(config)}front = pipe({config["default_prompt"]!r}, image=control, {_settings(config)}).images[0]
"""
    return "\n\n".join(
        [
            "With `backshan_diffusers` and a base model:\n\n"
            f"{_fenced('python', _combined(repo_id, base, None, asked, ''))}",
            f"With diffusers alone and a control picture made by hand:\n\n{_fenced('python', stock)}",
        ]
    )


def _asked(variant: str | None) -> str:
    """What `from_pretrained` has to be told where there are no weights in the plain form."""
    return "" if variant is None else f', variant="{variant}"'


def _combined(
    repo_id: str, base: str, subfolder: str | None, asked: str, asked_of_base: str, adapters: str = ""
) -> str:
    where = f'"{repo_id}", subfolder="{subfolder}"' if subfolder else f'"{repo_id}"'
    return f"""
from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline

controlnet = BackshanControlNetModel.from_pretrained({where}{asked})
pipe = BackToFrontPipeline.from_pretrained("{base}", controlnet=controlnet{asked_of_base})
{adapters}front = pipe("back.png").images[0]
"""


def _fenced(language: str, code: str) -> str:
    """A block of code, in a fence that is longer than any in the code: a prompt may hold one."""
    fence = max(["``", *re.findall("`{3,}", code)], key=len) + "`"
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"


def _reading(repo_id: str, split: str, size: int) -> str:
    return f"""
from backshan_diffusers.data import load_pairs
from backshan_diffusers.hub import pull_pairs

pairs = load_pairs("folder", path=pull_pairs("{repo_id}"), split="{split}", size={size})
"""


def _settings(config: Mapping[str, Any]) -> str:
    steps, guidance = config["default_num_inference_steps"], config["default_guidance_scale"]
    return f"num_inference_steps={steps}, guidance_scale={guidance}"


def _control(config: Mapping[str, Any], classes: str) -> str:
    """Code that imports classes of diffusers, and makes the control picture of a square back without this package.

    For latents it is the picture that `_encoding` goes on with.
    """
    parts, side = config["conditioning"].split("+"), config["image_size"]
    edges = f"cv2.Canny(back, {config['canny_low_threshold']}, {config['canny_high_threshold']})"
    channels = {"rgb": "back", "latents": "back", "canny": f"np.repeat({edges}[:, :, None], 3, axis=2)"}
    flip = "[:, ::-1]" if config["mirror"] else ""
    lines = [
        *(["import cv2"] if "canny" in parts else []),
        "import numpy as np",
        "import PIL.Image",
        "import torch",
        f"from diffusers import {classes}",
        "",
        f'picture = PIL.Image.open("back.png").convert("RGB").resize(({side}, {side}))',
        f"back = np.ascontiguousarray(np.asarray(picture){flip})",
        f"control = np.concatenate([{', '.join(channels[part] for part in parts)}], axis=2)",
        "control = torch.from_numpy(control).permute(2, 0, 1)[None].float() / 255",
    ]
    return "\n".join(lines)


def _encoding(config: Mapping[str, Any]) -> str:
    """Code between the making of a pipeline and its call: for latents, the control tensor from the control picture."""
    if config["conditioning"] != "latents":
        return ""
    side = config["image_size"]
    return f"""\
with torch.no_grad():
    latents = pipe.vae.encode(control * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
control = torch.nn.functional.interpolate(latents, ({side}, {side}))
"""
