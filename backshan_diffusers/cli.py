"""The `backshan` command: it checks what was asked for, and calls the parts of the package that do it.

Torch and diffusers take seconds to import, so they are imported where they are needed: `backshan --help` is instant.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import MINI, __version__

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from . import BackToFrontPipeline

PROGRAM = "backshan"
DTYPES = ("float32", "bfloat16", "float16")
SHEET_CELL_SIDE = 256
"""Longest side in px of a picture on the sheet."""

LARGEST_SEED = 2**63 - 1

DONE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


class UnusableArgumentError(ValueError):
    """Nothing can be done with these arguments; the message is one sentence."""


@dataclass
class Job:
    """One front to generate: the `number`th (from 0) of a back."""

    back: Path
    number: int
    result: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the program's name; by default what the process was started with.

    Returns:
        The exit code: 0 if all was done, 1 if some of it failed, 2 if the arguments cannot be used, 130 after Ctrl-C.
        Like every argparse program it raises `SystemExit` after `--help`, `--version` and unparsable arguments.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except UnusableArgumentError as error:
        _report(str(error))
        return UNUSABLE
    except KeyboardInterrupt:
        _report("interrupted before anything was written.")
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One sentence in place of argparse's usage block."""
        _report(f"{message.rstrip('.')}: see {self.prog} --help.")
        sys.exit(UNUSABLE)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand sets `run`, a function of the parsed options."""
    parser = _Parser(prog=PROGRAM, description="Front views of clothed people from back views.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_generate(commands)
    return parser


def _add_generate(commands) -> None:
    parser = commands.add_parser(
        "generate",
        allow_abbrev=False,
        help="turn pictures of backs into pictures of fronts",
        description="Turns pictures of people seen from behind into pictures of the same people seen from the front. "
        "One PNG file is written for each front, with the model and all settings in its text chunks. "
        "Files of the same name that this command wrote before are replaced; any other file is left alone.",
        epilog="exit codes: 0 all done, 1 some pictures missing or unusable, 2 unusable arguments, 130 interrupted",
    )
    parser.set_defaults(run=generate)
    add = parser.add_argument
    add("backs", nargs="+", metavar="BACK", help="picture, folder of pictures (subfolders are not read), or glob")
    add(
        "-o", "--out", metavar="OUT", default="fronts", help="folder, or NAME.png for one front (default: %(default)s)"
    )
    add("--model", default="mini", metavar="PATH_OR_REPO", help="folder, Hub repo id, or mini (default: %(default)s)")
    add("--num-images", type=_positive, default=1, metavar="N", help="fronts for each back (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="S", help="of the first front of each back (default: %(default)s)")
    add("--steps", type=_positive, metavar="K", help="denoising steps (default: what the model records)")
    add("--guidance", type=_guidance, metavar="G", help="weight of the prompt (default: what the model records)")
    add("--prompt", metavar="TEXT", help="what to draw (default: what the model records)")
    add("--negative-prompt", metavar="TEXT", help="what not to draw; needs a guidance above 1")
    add("--device", metavar="DEVICE", help="such as cpu or cuda:1 (default: the accelerator if there is one)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="type of weights and values (default: %(default)s)")
    add("--batch-size", type=_positive, default=1, metavar="B", help="fronts made at once (default: %(default)s)")
    add("--original-size", action="store_true", help="resize each front to the size of its back")
    add("--sheet", action="store_true", help="also write sheet.png: each back beside its fronts")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def generate(options: argparse.Namespace) -> int:
    """`backshan generate`: arguments are judged before anything is done, pictures when their turn comes."""
    if options.seed + options.num_images - 1 > LARGEST_SEED:
        raise UnusableArgumentError(f"the seeds would go beyond {LARGEST_SEED}: give a smaller --seed.")
    backs, left_out = find_backs(options.backs)
    jobs, sheet = plan(backs, Path(options.out), options.num_images, options.sheet)
    _check_targets([*(job.result for job in jobs), *([sheet] if sheet else [])], backs)
    _make_folder(jobs[0].result.parent)
    with _quiet_libraries():
        pipeline = load_pipeline(options.model, *_device_and_dtype(options.device, options.dtype))
        settings = _settings(pipeline, options)
        for sentence in left_out:
            _report(sentence)
        return max(_run(pipeline, jobs, sheet, settings, options), SOME_FAILED if left_out else DONE)


def find_backs(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The pictures that files, folders and globs stand for, in the order given, each once.

    Returns:
        The pictures, and a sentence about each argument, folder or link that stands for none, each once.

    Raises:
        UnusableArgumentError: if there are no pictures; its message is the first of those sentences.
    """
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for argument in arguments:
        paths, sentences = _expand(argument)
        left_out += sentences
        for path in paths:
            if os.path.exists(path):
                found.setdefault(os.path.realpath(path), path)
            else:
                left_out.append(f"{path} is a link that leads nowhere: point it to a picture, or remove it.")
    if not found:
        raise UnusableArgumentError(left_out[0])
    return list(found.values()), list(dict.fromkeys(left_out))


def _expand(argument: str) -> tuple[list[Path], list[str]]:
    """What one argument stands for, links that lead nowhere included, and sentences about what stands for nothing."""
    if not argument:
        return [], ["one of the pictures has an empty name: give a picture, a folder or a glob."]
    paths, sentences = [], []
    for match in [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True)):
        try:
            paths += _pictures_in(Path(match)) if os.path.isdir(match) else [Path(match)]
        except OSError as error:
            sentences.append(f"the folder {match} cannot be read ({error.strerror}): give one that can.")
    if not paths and not sentences:
        sentences = [
            f"the folder {argument} holds no pictures: give one with JPEG or PNG files in it."
            if os.path.isdir(argument)
            else f"{argument} does not exist: give a picture, a folder or a glob that matches some."
        ]
    return paths, sentences


def _pictures_in(folder: Path) -> list[Path]:
    from .pictures import PICTURE_SUFFIXES

    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and not os.path.isdir(entry)
    ]


def plan(backs: list[Path], out: Path, num_images: int, with_sheet: bool) -> tuple[list[Job], Path | None]:
    """Which front goes to which file, and where the sheet goes, if one is wanted.

    Raises:
        UnusableArgumentError: if `out` is one file and there are several fronts, or is no name for a PNG file.
    """
    from .pictures import PICTURE_SUFFIXES

    suffix = out.suffix.lower()
    if out.is_dir() or suffix not in PICTURE_SUFFIXES:
        jobs = [
            Job(back, number, out / (f"{stem}_front.png" if num_images == 1 else f"{stem}_front_{number + 1}.png"))
            for back, stem in zip(backs, _distinct_stems(backs))
            for number in range(num_images)
        ]
        return jobs, out / "sheet.png" if with_sheet else None
    if suffix != ".png":
        raise UnusableArgumentError(f"fronts are written as PNG files, not {out.name}: give a folder or a .png name.")
    if len(backs) * num_images > 1:
        raise UnusableArgumentError(
            f"{out} is one file but there are {len(backs) * num_images} fronts to write: give a folder as --out."
        )
    return [Job(backs[0], 0, out)], out.with_name(f"{out.stem}_sheet.png") if with_sheet else None


def _distinct_stems(backs: list[Path]) -> list[str]:
    """The files' names without suffix; where that was taken, with the folder's name, and then with a number."""
    stems: dict[str, str] = {}
    for back in backs:
        names = itertools.chain(
            (back.stem, f"{back.absolute().parent.name}_{back.stem}"), (f"{back.stem}_{n}" for n in itertools.count(2))
        )
        stem = next(name for name in names if name.casefold() not in stems)
        stems[stem.casefold()] = stem
    return list(stems.values())


def _check_targets(targets: list[Path], backs: list[Path]) -> None:
    """Refuses to replace a picture that was given, a folder, or anything that this command did not write."""
    given = {os.path.realpath(back) for back in backs}
    for target in targets:
        if os.path.realpath(target) in given:
            raise UnusableArgumentError(f"{target} is one of the backs and would be replaced: give another --out.")
        if os.path.lexists(target) and not _is_ours(target):
            raise UnusableArgumentError(f"{target} exists and was not written by {PROGRAM}: give another --out.")


def _is_ours(path: Path) -> bool:
    import PIL.Image

    if not path.is_file():  # to open a pipe would wait for its other end
        return False
    try:
        with PIL.Image.open(path) as picture:
            return picture.info.get("Software") == PROGRAM
    except Exception:  # whatever PIL cannot open is not ours
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnusableArgumentError(
            f"nothing can be written to the folder {folder} ({error.strerror}): give another --out."
        ) from error


def _device_and_dtype(device_name: str | None, dtype_name: str) -> tuple[torch.device, torch.dtype]:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(device_name) if device_name is not None else accelerator or torch.device("cpu")
    except RuntimeError as error:
        raise UnusableArgumentError(f"there is no device {device_name!r}: give cpu, cuda or mps.") from error
    here = {"cpu": 1} | ({accelerator.type: torch.accelerator.device_count()} if accelerator else {})
    if (device.index or 0) >= here.get(device.type, 0):
        raise UnusableArgumentError(f"the device {device_name} is not on this machine: give {' or '.join(here)}.")
    if device.type == "cpu" and dtype_name == "float16":
        raise UnusableArgumentError(
            "float16 does not work on a CPU, which lacks many of its operations: give --dtype float32 or bfloat16."
        )
    return device, getattr(torch, dtype_name)


def load_pipeline(model: str, device: torch.device, dtype: torch.dtype) -> BackToFrontPipeline:
    """The pipeline of `--model`: the embedded `mini`, a folder, or a Hub repository.

    Raises:
        UnusableArgumentError: if there is no such model, or it cannot be loaded.
    """
    from . import BackshanControlNetModel, BackToFrontPipeline

    source = MINI if model == "mini" else model
    if not os.path.isdir(source) and (model == "mini" or not _may_be_repo_id(model)):
        raise UnusableArgumentError(
            f"the model folder {source} does not exist: give the folder of a saved pipeline, a Hub repo id, or mini."
        )
    try:
        pipeline = BackToFrontPipeline.from_pretrained(source, dtype=dtype).to(device)
    except Exception as error:  # damaged files and the network make the readers raise nearly anything
        if not os.path.isdir(source):
            raise UnusableArgumentError(_why_not_from_hub(model, error)) from error
        raise UnusableArgumentError(f"the model {model} cannot be loaded: {_one_line(error)}") from error
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        raise UnusableArgumentError(
            f"the ControlNet of {model} does not record how it reads a picture: give a model made by this package."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _may_be_repo_id(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return "/" in model


def _why_not_from_hub(model: str, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import RepositoryNotFoundError

    start = f"{model} is no folder here, and the Hub repository of that name cannot be loaded:"
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if HF_HUB_OFFLINE:
        return f"{start} HF_HUB_OFFLINE is set and the repository was not downloaded before."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{start} it does not exist, or is private and needs a token (hf auth login)."
    return f"{start} {_one_line(causes[-1])}"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _settings(pipeline: BackToFrontPipeline, options: argparse.Namespace) -> dict[str, str | int | float | None]:
    """What the call is made with and what is recorded: the options, or else what the model records.

    Raises:
        UnusableArgumentError: if the scheduler has fewer timesteps than steps were asked for.
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
    if options.negative_prompt is not None and settings["guidance_scale"] <= 1:
        _report(
            f"the negative prompt does nothing at guidance {settings['guidance_scale']:g}: give --guidance 2 or so."
        )
    longest = pipeline.tokenizer.model_max_length
    for name in ("prompt", "negative_prompt"):
        tokens = len(pipeline.tokenizer(settings[name] or "").input_ids)
        if tokens > longest:
            _report(f"the {name.replace('_', ' ')} has {tokens - 2} tokens: only the first {longest - 2} are used.")
    return settings


def _run(pipeline, jobs: list[Job], sheet: Path | None, settings: dict, options: argparse.Namespace) -> int:
    """Generates, saves and reports; what is finished stays, whatever happens afterwards."""
    import torch
    from tqdm import tqdm

    from .pictures import picture_sheet

    metadata = _metadata(settings, options)
    folder = jobs[0].result.parent
    rows: dict[Path, list[PIL.Image.Image | None]] = {}
    written, failed = 0, set()
    with tqdm(total=len(jobs), unit="front", disable=None) as progress:
        try:
            usable = _load_backs(pipeline, jobs, options, failed, progress)
            for job, back, seed, front in _fronts(pipeline, usable, settings, options):
                if _save(front, job.result, metadata | {"seed": seed, "source": _text(job.back.name)}):
                    written += 1
                    if sheet:
                        row = rows.setdefault(job.back, [_thumbnail(back)] + [None] * options.num_images)
                        row[1 + job.number] = _thumbnail(front)
                else:
                    failed.add(job.back)
                progress.update()
            if rows:
                picture = picture_sheet(list(rows.values()), ["back"] + ["generated"] * options.num_images)
                if not _save(picture, sheet, metadata):
                    failed.add(sheet)
        except KeyboardInterrupt:
            _report(f"interrupted: {written} of {len(jobs)} fronts were written to {folder}.")
            return INTERRUPTED
        except torch.OutOfMemoryError:
            _report(
                f"the device ran out of memory after {written} of {len(jobs)} fronts: give a smaller --batch-size."
            )
            return SOME_FAILED
    print(f"{written} of {len(jobs)} fronts were written to {_text(str(folder))}")
    return SOME_FAILED if failed else DONE


def _metadata(settings: dict, options: argparse.Namespace) -> dict[str, str | int | float | None]:
    """What is recorded in every front, besides its seed and its source. Folders above the model's are left out."""
    is_folder = os.path.isdir(options.model)
    return {
        "Software": PROGRAM,
        "version": __version__,
        "model": _text(Path(options.model).resolve().name if is_folder else options.model),
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "prompt": _text(settings["prompt"]),
        "negative_prompt": settings["negative_prompt"] and _text(settings["negative_prompt"]),
        "dtype": options.dtype,
    }


def _fronts(
    pipeline, usable: Iterator[tuple[Job, PIL.Image.Image]], settings: dict, options: argparse.Namespace
) -> Iterator[tuple[Job, PIL.Image.Image, int, PIL.Image.Image]]:
    """Job, back, seed and front. The seed does not depend on which other pictures are given."""
    import torch

    while batch := list(itertools.islice(usable, options.batch_size)):
        seeds = [options.seed + job.number for job, _ in batch]
        fronts = pipeline(
            [back for _, back in batch],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            restore_size=options.original_size,
            **settings,
        ).images
        for (job, back), seed, front in zip(batch, seeds, fronts, strict=True):
            yield job, back, seed, front


def _save(picture: PIL.Image.Image, path: Path, metadata: dict) -> bool:
    from .pictures import save_picture

    try:
        save_picture(picture, path, metadata)
    except OSError as error:
        _report(f"{path} cannot be written ({error.strerror}).")
        return False
    return True


def _load_backs(
    pipeline, jobs: Iterable[Job], options: argparse.Namespace, failed: set[Path], progress
) -> Iterator[tuple[Job, PIL.Image.Image]]:
    """Each job with its picture; the jobs of a picture that cannot be used are reported once and left out."""
    from .pictures import PictureError, load_picture, pixels_to_decode

    enough_pixels = pixels_to_decode(pipeline.controlnet.config.image_size, options.original_size)
    for path, group in itertools.groupby(jobs, key=lambda job: job.back):
        same_back = list(group)
        try:
            back = load_picture(path, enough_pixels)
        except (PictureError, OSError) as error:
            failed.add(path)
            _report(str(error))
            progress.update(len(same_back))
            continue
        yield from ((job, back) for job in same_back)


def _thumbnail(picture: PIL.Image.Image) -> PIL.Image.Image:
    import PIL.ImageOps

    return PIL.ImageOps.contain(picture, (SHEET_CELL_SIDE, SHEET_CELL_SIDE))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the progress bars and warnings of diffusers and transformers: what matters here is said by us."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, with_bar) in zip(libraries, before):
            library.set_verbosity(level)
            if with_bar:
                library.enable_progress_bar()


def _text(text: str) -> str:
    """What every encoding can write: names of files may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _report(sentence: str) -> None:
    """One sentence on stderr, above a progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    write = tqdm.tqdm.write if tqdm else print
    write(f"{PROGRAM}: {_text(sentence)}", file=sys.stderr)
