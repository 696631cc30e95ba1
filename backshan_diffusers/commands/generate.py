"""`backshan generate`: its options, and what is judged before the first front is made."""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING

from ..files import clear_unfinished
from .arguments import LARGEST_NUMBER, guidance, positive, prompt, seed
from .exits import DONE, SOME_FAILED, UnusableArgumentError
from .fronts import write_fronts
from .inputs import find_backs, without_results
from .loading import device_and_dtype, find_model, load_pipeline
from .messages import first_sentence, quiet_libraries, report
from .outputs import check_targets, check_writable, plan, refusing_to_write_in

if TYPE_CHECKING:
    from .. import BackToFrontPipeline

DTYPES = ("float32", "bfloat16", "float16")


def add_generate(commands) -> None:
    """Add the subcommand to the `commands` of a parser."""
    parser = commands.add_parser(
        "generate",
        allow_abbrev=False,
        help="turn pictures of backs into pictures of fronts",
        description="Turns pictures of people seen from behind into pictures of the same people seen from the front. "
        "One PNG file is written for each front, with the model and all settings in its text chunks. "
        "Files of the same name that this command wrote before are replaced; any other file is left alone. "
        "Pictures that this command wrote are no backs, and are left out.",
        epilog="exit codes: 0 all done, 1 some pictures missing, unusable or not written, 2 unusable arguments, "
        "130 interrupted, 143 killed, 129 hung up",
    )
    parser.set_defaults(run=generate)
    add = parser.add_argument
    add("backs", nargs="+", metavar="BACK", help="picture, folder of pictures (subfolders are not read), or glob")
    add(
        "-o", "--out", metavar="OUT", default="fronts", help="folder, or NAME.png for one front (default: %(default)s)"
    )
    add("--model", default="mini", metavar="PATH_OR_REPO", help="folder, Hub repo id, or mini (default: %(default)s)")
    add("--num-images", type=positive, default=1, metavar="N", help="fronts for each back (default: %(default)s)")
    add("--seed", type=seed, default=0, metavar="S", help="of the first front of each back (default: %(default)s)")
    add("--steps", type=positive, metavar="K", help="denoising steps (default: what the model records)")
    add("--guidance", type=guidance, metavar="G", help="weight of the prompt (default: what the model records)")
    add("--prompt", type=prompt, metavar="TEXT", help="what to draw (default: what the model records)")
    add("--negative-prompt", type=prompt, metavar="TEXT", help="what not to draw; needs a guidance above 1")
    add("--device", metavar="DEVICE", help="such as cpu or cuda:1 (default: the accelerator if there is one)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="type of weights and values (default: %(default)s)")
    add("--batch-size", type=positive, default=1, metavar="B", help="fronts made at once (default: %(default)s)")
    add("--original-size", action="store_true", help="resize each front to the size of its back")
    add("--sheet", action="store_true", help="also write sheet.png: each back beside its fronts")


def generate(options: argparse.Namespace) -> int:
    """`backshan generate`: arguments are judged before anything is done, pictures when their turn comes."""
    if options.seed + options.num_images - 1 > LARGEST_NUMBER:
        raise UnusableArgumentError(f"the seeds would go beyond {LARGEST_NUMBER}: give a smaller --seed.")
    backs, left_out = find_backs(options.backs)
    backs, notes = without_results(backs)
    jobs, sheet = plan(backs, options.out, options.num_images, options.sheet)
    folder = jobs[0].result.parent
    targets = [*(job.result for job in jobs), *([sheet] if sheet else [])]
    check_writable(folder, targets)
    check_targets(targets, backs)
    device, dtype = device_and_dtype(options.device, options.dtype)
    found = find_model(options.model)
    with quiet_libraries():
        pipeline = load_pipeline(options.model, found, device, dtype)
        settings = settings_of(pipeline, options)
        _report_what_does_nothing(pipeline.tokenizer, settings)
        with refusing_to_write_in(folder):
            folder.mkdir(parents=True, exist_ok=True)
            clear_unfinished(folder)
        for sentence in [*left_out, *notes]:
            report(sentence)
        return max(write_fronts(pipeline, found, jobs, sheet, settings, options), SOME_FAILED if left_out else DONE)


def settings_of(pipeline: BackToFrontPipeline, options: argparse.Namespace) -> dict[str, str | int | float | None]:
    """What the call is made with and what is recorded: the options, or else what the model records.

    Raises:
        UnusableArgumentError: if the scheduler cannot take so many steps.
    """
    recorded = pipeline.controlnet.config
    settings = {
        "prompt": options.prompt if options.prompt is not None else recorded.default_prompt,
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.steps or recorded.default_num_inference_steps,
        "guidance_scale": recorded.default_guidance_scale if options.guidance is None else options.guidance,
    }
    most = pipeline.scheduler.config.num_train_timesteps
    if settings["num_inference_steps"] > most:
        raise UnusableArgumentError(f"this model has {most} timesteps: give --steps of at most {most}.")
    _check_scheduler(pipeline.scheduler, settings["num_inference_steps"])
    return settings


def _report_what_does_nothing(tokenizer, settings: dict[str, str | int | float | None]) -> None:
    """A negative prompt without guidance, and the words of a prompt that are too many for the model."""
    if settings["negative_prompt"] is not None and settings["guidance_scale"] <= 1:
        report(
            f"the negative prompt does nothing at guidance {settings['guidance_scale']:g}: give --guidance 2 or so."
        )
    longest = tokenizer.model_max_length
    for name in ("prompt", "negative_prompt"):
        tokens = len(tokenizer(settings[name] or "").input_ids)
        if tokens > longest:
            report(f"the {name.replace('_', ' ')} has {tokens - 2} tokens: only the first {longest - 2} are used.")


def _check_scheduler(scheduler, steps: int) -> None:
    """Refuse what the first front would end with: some schedulers cannot take every number of steps."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "init_noise_sigma"):
        raise UnusableArgumentError(f"the model's scheduler, {name}, is none of Stable Diffusion: give another model.")
    try:
        copy.deepcopy(scheduler).set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UnusableArgumentError(
            f"the model's scheduler, {name}, cannot take {steps} steps ({first_sentence(error).rstrip('.')}):"
            " give other --steps."
        ) from error
