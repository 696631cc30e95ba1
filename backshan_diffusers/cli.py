"""The `backshan` command: it checks what was asked for, and calls the parts of the package that do it.

Torch and diffusers take seconds to import, so they are imported where they are needed: `backshan --help` is instant.
"""

from __future__ import annotations

import argparse
import errno
import glob
import itertools
import math
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from . import __version__

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from . import BackToFrontPipeline

PROGRAM = "backshan"
DTYPES = ("float32", "bfloat16", "float16")
SHEET_CELL_SIDE = 256
"""Longest side in px of a picture on the sheet."""

LARGEST_NUMBER = 2**63 - 1
"""Of a seed, and of whatever else is counted."""

LONGEST_STEM = 230
"""Bytes of a back's name that go into that of its front, which a number may follow."""

MOST_FRONTS = 1_000_000
"""Of one run: each is planned before the first is made."""

LONGEST_REFUSAL = 600
"""Characters of a refusal; longer ones lose their middle, where an argument is repeated."""

DONE, SOME_FAILED, UNUSABLE, KILLED = 0, 1, 2, 128
"""Exit codes; the number of the signal is added to the last."""

ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Besides Ctrl-C: what `kill` and a terminal that is closed send."""

FOLDER_TAKES_NO_MORE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT))
"""Errors of writing a file that the next file would meet too: the disk is full, or the folder is gone."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What would break a line or move the cursor, and the bytes of names that are no text."""


class UnusableArgumentError(ValueError):
    """Nothing can be done with these arguments; the message is one sentence."""


class FolderTakesNoMoreError(OSError):
    """A picture could not be written, and no other one could be."""


@dataclass
class Job:
    """One front to generate: the `number`th (from 0) of a back."""

    back: Path
    number: int
    result: Path


@dataclass
class Tally:
    """What has come of a run so far: fronts written, and the backs or the sheet of which something is missing."""

    written: int = 0
    failed: set[Path] = field(default_factory=set)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the program's name; by default what the process was started with.

    Returns:
        The exit code: 0 if all was done, 1 if some of it failed, 2 if the arguments cannot be used, 130 after Ctrl-C,
        143 after SIGTERM, 129 after SIGHUP.
        Like every argparse program it raises `SystemExit` after `--help`, `--version` and unparsable arguments.
    """
    options = build_parser().parse_args(arguments)
    try:
        with _signals_interrupt():
            return options.run(options)
    except UnusableArgumentError as error:
        _report(_shortened(str(error)))
        return UNUSABLE
    except KeyboardInterrupt as interruption:
        _report("interrupted before anything was written.")
        return _exit_code(interruption)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Other signals that end a process do what Ctrl-C does, so that no unfinished file is left."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    is_main = threading.current_thread() is threading.main_thread()  # Python lets no other thread do this
    ours = [number for number in ENDING_SIGNALS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _exit_code(interruption: KeyboardInterrupt) -> int:
    return KILLED + (interruption.args[0] if interruption.args else signal.SIGINT)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One sentence in place of argparse's usage block."""
        _report(_shortened(f"{message.rstrip('.')}: see {self.prog} --help."))
        sys.exit(UNUSABLE)

    def exit(self, status: int = DONE, message: str | None = None):
        """After `--help` and `--version`: fails where they could not be written, as when the disk is full."""
        super().exit(status if _flush(sys.stdout) else SOME_FAILED, message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand sets `run`, a function of the parsed options."""
    parser = _Parser(prog=PROGRAM, description="Front views of clothed people from back views.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_generate(commands)
    _add_export(commands)
    _add_push(commands)
    return parser


def _add_generate(commands) -> None:
    parser = commands.add_parser(
        "generate",
        allow_abbrev=False,
        help="turn pictures of backs into pictures of fronts",
        description="Turns pictures of people seen from behind into pictures of the same people seen from the front. "
        "One PNG file is written for each front, with the model and all settings in its text chunks. "
        "Files of the same name that this command wrote before are replaced; any other file is left alone.",
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
    add("--num-images", type=_positive, default=1, metavar="N", help="fronts for each back (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="S", help="of the first front of each back (default: %(default)s)")
    add("--steps", type=_positive, metavar="K", help="denoising steps (default: what the model records)")
    add("--guidance", type=_guidance, metavar="G", help="weight of the prompt (default: what the model records)")
    add("--prompt", type=_prompt, metavar="TEXT", help="what to draw (default: what the model records)")
    add("--negative-prompt", type=_prompt, metavar="TEXT", help="what not to draw; needs a guidance above 1")
    add("--device", metavar="DEVICE", help="such as cpu or cuda:1 (default: the accelerator if there is one)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="type of weights and values (default: %(default)s)")
    add("--batch-size", type=_positive, default=1, metavar="B", help="fronts made at once (default: %(default)s)")
    add("--original-size", action="store_true", help="resize each front to the size of its back")
    add("--sheet", action="store_true", help="also write sheet.png: each back beside its fronts")


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="write a model in a form that other tools read",
        description="Writes the ControlNet as one .safetensors file in the original key layout, which Stable "
        "Diffusion web UIs and ComfyUI load, or the whole pipeline as a folder of ONNX files. "
        "What this command wrote before is replaced; anything else is left alone.",
        epilog="exit codes: 0 done, 1 the disk is full, 2 unusable arguments, 130 interrupted",
    )
    parser.set_defaults(run=export)
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="folder of a pipeline or, for controlnet, of a ControlNet alone; a Hub repo id; or mini",
    )
    add("-o", "--out", required=True, metavar="OUT", help="NAME.safetensors for controlnet, a folder for onnx")
    add("--format", required=True, choices=("controlnet", "onnx"), help="what to write")


def _add_push(commands) -> None:
    parser = commands.add_parser(
        "push",
        allow_abbrev=False,
        help="put a model on the Hub",
        description="Puts a pipeline or a ControlNet on the Hub, with a card: one commit, or none if nothing has "
        "changed. Nothing else that lies in the folder is sent. Interrupted, the same command goes on.",
        epilog="exit codes: 0 done, 1 the Hub does not answer, 2 it refuses or unusable arguments, 130 interrupted",
    )
    parser.set_defaults(run=push)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="of a saved pipeline or ControlNet")
    add("repo", metavar="REPO", help="Hub repo id, as owner/name; it is made if there is none")
    add("--private", action="store_true", help="only its owner sees the repository")
    add("--revision", metavar="BRANCH", help="it is made if there is none (default: main)")
    add("--license", metavar="ID", help="of the weights, as the Hub names it (default: what their record tells)")


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _seed(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    # Python converts no more than some thousand digits
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_NUMBER)) else -1
    if not least <= number <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {LARGEST_NUMBER}")
    return number


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _prompt(text: str) -> str:
    """The bytes that were given, read as UTF-8 whatever the locale says."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("the text is not in UTF-8, and no other encoding can be read") from None


def generate(options: argparse.Namespace) -> int:
    """`backshan generate`: arguments are judged before anything is done, pictures when their turn comes."""
    if options.seed + options.num_images - 1 > LARGEST_NUMBER:
        raise UnusableArgumentError(f"the seeds would go beyond {LARGEST_NUMBER}: give a smaller --seed.")
    backs, left_out = find_backs(options.backs)
    jobs, sheet = plan(backs, options.out, options.num_images, options.sheet)
    folder = jobs[0].result.parent
    targets = [*(job.result for job in jobs), *([sheet] if sheet else [])]
    _check_folder(folder, targets)
    _check_targets(targets, backs)
    with _quiet_libraries():
        pipeline = load_pipeline(options.model, *_device_and_dtype(options.device, options.dtype))
        settings = _settings(pipeline, options)
        with _refusing_to_write_in(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for sentence in left_out:
            _report(sentence)
        return max(_run(pipeline, jobs, sheet, settings, options), SOME_FAILED if left_out else DONE)


def export(options: argparse.Namespace) -> int:
    """`backshan export`: nothing is written under its name before all of it is there."""
    import torch

    from . import hub
    from .export import ExportError, export_controlnet, export_onnx, load_stored_controlnet, origin_of
    from .files import DiskFullError

    out = Path(options.out)
    try:
        source = hub.find_model(options.model).folder
    except hub.HubError as error:
        raise UnusableArgumentError(str(error)) from error
    if not options.out:
        raise UnusableArgumentError("--out is empty: give a name for what is written.")
    _check_folder(out.parent, [out])
    with _quiet_libraries():
        try:
            origin = origin_of(source)
            if options.format == "controlnet":
                export_controlnet(load_stored_controlnet(source), out, origin)
            else:
                export_onnx(load_pipeline(options.model, torch.device("cpu"), torch.float32), out, origin)
        except DiskFullError as error:
            _report(str(error))
            return SOME_FAILED
        except (ExportError, OSError) as error:
            raise UnusableArgumentError(_sentence(error)) from error
    summary = f"the model was written to {out}"
    if not _say(summary, sys.stdout):
        _report(f"{summary}.")
    return DONE


def push(options: argparse.Namespace) -> int:
    """`backshan push`: the Hub is asked when the folder is found to hold a whole model."""
    from . import hub

    settings = {"private": options.private, "revision": options.revision, "license": options.license}
    with _quiet_hub():
        try:
            commit = hub.push(options.folder, options.repo, **settings)
        except hub.UnreachableHubError as error:
            _report(_shortened(str(error)))
            return SOME_FAILED
        except (OSError, ValueError) as error:
            raise UnusableArgumentError(str(error)) from error
    _say(f"{options.repo} holds {options.folder}: {commit.commit_url}", sys.stdout)
    return DONE


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
            elif os.path.islink(path):
                left_out.append(f"{path} is a link that leads nowhere: point it to a picture, or remove it.")
            else:  # it was listed, but its folder may not be entered
                left_out.append(f"{path} cannot be reached: give one that this user may read.")
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
            pictures, others = _pictures_in(Path(match)) if os.path.isdir(match) else ([Path(match)], [])
            paths += pictures
            sentences += others
        except OSError as error:
            sentences.append(f"the folder {match} cannot be read ({error.strerror}): give one that can.")
    if not paths and not sentences:
        sentences = [
            f"the folder {argument} holds no pictures: give one with JPEG or PNG files in it."
            if os.path.isdir(argument)
            else f"{argument} does not exist: give a picture, a folder or a glob that matches some."
        ]
    return paths, sentences


def _pictures_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, sorted, and a sentence about those that nothing here can open."""
    from .pictures import PICTURE_SUFFIXES, UNREAD_SUFFIXES

    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".") and not entry.is_dir()]
    unread = [entry for entry in entries if entry.suffix.lower() in UNREAD_SUFFIXES]
    named = f"{unread[0].name}{', ...' if len(unread) > 1 else ''}" if unread else ""
    sentence = f"{len(unread)} of the pictures in {folder} cannot be opened ({named}): convert to JPEG."
    return [entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES], [sentence] if unread else []


def plan(backs: list[Path], out: str, num_images: int, with_sheet: bool) -> tuple[list[Job], Path | None]:
    """Which front goes to which file, and where the sheet goes, if one is wanted.

    Args:
        backs: the pictures.
        out: a folder or a file. As with `cp`, what is a folder or ends with a slash is one, whatever its name.
        num_images: fronts for each back.
        with_sheet: whether a sheet is wanted.

    Raises:
        UnusableArgumentError: if `out` is empty, no name for a PNG file, or one file for several fronts, or if there
            are more fronts than can be planned.
    """
    from .pictures import PICTURE_SUFFIXES

    if not out:
        raise UnusableArgumentError("--out is empty: give a folder, or . for the current one.")
    count = len(backs) * num_images
    if count > MOST_FRONTS:
        raise UnusableArgumentError(f"{count} fronts are more than the {MOST_FRONTS} of one run: give fewer.")
    path, suffix = Path(out), Path(os.path.basename(out)).suffix.lower()
    if os.path.isdir(out) or suffix not in PICTURE_SUFFIXES:
        jobs = [
            Job(back, number, path / (f"{stem}_front.png" if num_images == 1 else f"{stem}_front_{number + 1}.png"))
            for back, stem in zip(backs, _distinct_stems(backs))
            for number in range(num_images)
        ]
        return jobs, path / "sheet.png" if with_sheet else None
    if suffix != ".png":
        raise UnusableArgumentError(f"fronts are written as PNG files, not {path.name}: give a folder or a .png name.")
    if count > 1:
        raise UnusableArgumentError(
            f"{out} is one file but there are {count} fronts to write: give a folder as --out."
        )
    return [Job(backs[0], 0, path)], path.with_name(f"{path.stem}_sheet.png") if with_sheet else None


def _distinct_stems(backs: list[Path]) -> list[str]:
    """The files' names without suffix; where that was taken, with the folder's name, and then with a number. Those too
    long for a front's name are cut."""
    stems: dict[str, str] = {}
    for back in backs:
        names = itertools.chain(
            (_cut(back.stem), _cut(f"{back.absolute().parent.name}_{back.stem}")),
            (f"{_cut(back.stem)}_{n}" for n in itertools.count(2)),
        )
        stem = next(name for name in names if name.casefold() not in stems)
        stems[stem.casefold()] = stem
    return list(stems.values())


def _cut(stem: str) -> str:
    """What of a name leaves room for what is put behind it in a file's name of the usual 255 bytes."""
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= LONGEST_STEM else encoded[:LONGEST_STEM].decode("utf-8", "ignore")


def _check_folder(folder: Path, targets: list[Path]) -> None:
    """Refuses what could not be written in the end, without writing it: the folder is made when the model is there."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    with _refusing_to_write_in(folder), tempfile.TemporaryFile(dir=existing):
        pass
    names = dict.fromkeys([*folder.absolute().parts, *(target.name for target in targets)])
    for path in (*(existing / name for name in names), *targets):
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UnusableArgumentError(
                    f"the name or path of {path.name} is too long: give another --out, or rename the back."
                ) from error


@contextmanager
def _refusing_to_write_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnusableArgumentError(
            f"nothing can be written to the folder {folder} ({error.strerror}): give another --out."
        ) from error


def _check_targets(targets: list[Path], backs: list[Path]) -> None:
    """Refuses to replace a picture that was given, a folder, or anything that this command did not write."""
    given = {os.path.realpath(back) for back in backs}
    for target in targets:
        if os.path.realpath(target) in given:
            raise UnusableArgumentError(f"{target} is one of the backs and would be replaced: give another --out.")
        if os.path.lexists(target) and not _is_ours(target):
            raise UnusableArgumentError(f"{target} exists and was not written by {PROGRAM}: give another --out.")


def _is_ours(path: Path) -> bool:
    import PIL.PngImagePlugin

    if not path.is_file():  # to open a pipe would wait for its other end
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: none is decoded
            # not PIL.Image.open, which refuses the pixels of a long sheet
            with PIL.PngImagePlugin.PngImageFile(path) as picture:
                return picture.info.get("Software") == PROGRAM
    except Exception:  # whatever is no PNG is not ours
        return False


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
    from . import BackshanControlNetModel, BackToFrontPipeline, hub
    from .folder_check import ADAPTERS, find_damage

    try:
        found = hub.find_model(model)
    except hub.HubError as error:
        raise UnusableArgumentError(str(error)) from error
    if _text(model) != model:
        raise UnusableArgumentError(
            f"the name of the model {model} is not in UTF-8, and its files cannot be opened by another: rename it."
        )
    if found.is_choice:
        _report(f"the model is {found.origin}.")
    try:
        pipeline = BackToFrontPipeline.from_pretrained(found.folder, dtype=dtype).to(device)
        if (found.folder / ADAPTERS).exists():  # a part of what the folder was trained to do
            pipeline.load_lora_weights(found.folder)
    except Exception as error:  # damaged files make the readers raise nearly anything
        reason = (None if isinstance(error, OSError) else find_damage(found.folder)) or _sentence(error)
        raise UnusableArgumentError(f"the model {model} cannot be loaded: {reason}") from error
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        raise UnusableArgumentError(
            f"the ControlNet of {model} does not record how it reads a picture: give a model made by this package."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sentence(error: BaseException) -> str:
    """The first line of its message, or its name if it has none, as the end of a sentence."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read ({error.strerror})."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."


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
    from tqdm import tqdm

    folder = jobs[0].result.parent
    tally = Tally()
    # None: no bar where stderr is no terminal
    with tqdm(total=len(jobs), unit="front", disable=None if sys.stderr else True) as progress:
        try:
            _write_pictures(pipeline, jobs, sheet, settings, options, tally, progress)
        except KeyboardInterrupt as interruption:
            _report(f"interrupted: {tally.written} of {len(jobs)} fronts were written to {folder}.")
            return _exit_code(interruption)
        except FolderTakesNoMoreError as error:
            _report(
                f"nothing more can be written to the folder {folder} ({error.strerror}):"
                f" {tally.written} of {len(jobs)} fronts were written."
            )
            return SOME_FAILED
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            _report(
                f"the device ran out of memory after {tally.written} of {len(jobs)} fronts:"
                " give a smaller --batch-size."
            )
            return SOME_FAILED
    summary = f"{tally.written} of {len(jobs)} fronts were written to {folder}"
    if not _say(summary, sys.stdout):
        _report(f"{summary}.")
    return SOME_FAILED if tally.failed else DONE


def _write_pictures(
    pipeline, jobs: list[Job], sheet: Path | None, settings: dict, options: argparse.Namespace, tally: Tally, progress
) -> None:
    """Every front that can be generated, and then the sheet, if one is wanted."""
    from .pictures import picture_sheet

    metadata = _metadata(settings, options)
    rows: dict[Path, list[PIL.Image.Image | None]] = {}
    usable = _load_backs(pipeline, jobs, options, tally.failed, progress)
    for job, back, seed, front in _fronts(pipeline, usable, settings, options):
        if front is None:
            tally.failed.add(job.back)
            _report(
                f"the front of {job.back} with seed {seed} has values that are not finite, so it is not written:"
                f" give a smaller --guidance{'' if options.dtype == 'float32' else ', or --dtype float32'}."
            )
        elif _save(front, job.result, metadata | {"seed": seed, "source": _text(job.back.name)}):
            tally.written += 1
            if sheet:
                row = rows.setdefault(job.back, [_thumbnail(back)] + [None] * options.num_images)
                row[1 + job.number] = _thumbnail(front)
        else:
            tally.failed.add(job.back)
        progress.update()
    if rows:
        titles, names = ["back"] + ["generated"] * options.num_images, [back.name for back in rows]
        picture = picture_sheet(list(rows.values()), titles, captions=names)
        if not _save(picture, sheet, metadata):
            tally.failed.add(sheet)


def _is_lack_of_memory(error: Exception) -> bool:
    import torch

    # for the memory of the machine itself, torch has no class of its own
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _metadata(settings: dict, options: argparse.Namespace) -> dict[str, str | int | float | None]:
    """What is recorded in every front, besides its seed and its source. Folders above the model's are left out."""
    is_folder = os.path.isdir(options.model)
    return {
        "Software": PROGRAM,
        "version": __version__,
        "model": _text(Path(options.model).resolve().name if is_folder else options.model),
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "prompt": settings["prompt"],
        "negative_prompt": settings["negative_prompt"],
        "dtype": options.dtype,
    }


def _fronts(
    pipeline, usable: Iterator[tuple[Job, PIL.Image.Image]], settings: dict, options: argparse.Namespace
) -> Iterator[tuple[Job, PIL.Image.Image, int, PIL.Image.Image | None]]:
    """Job, back, seed and front, which is `None` where its values are not finite."""
    while batch := list(itertools.islice(usable, options.batch_size)):
        yield from _fronts_of_batch(pipeline, batch, settings, options)


def _fronts_of_batch(
    pipeline, batch: list[tuple[Job, PIL.Image.Image]], settings: dict, options: argparse.Namespace
) -> Iterator[tuple[Job, PIL.Image.Image, int, PIL.Image.Image | None]]:
    """As `_fronts`. Neither its seed nor its failure makes a front depend on which other pictures are given."""
    import torch

    from .pipelines import NotFiniteError

    seeds = [options.seed + job.number for job, _ in batch]
    try:
        fronts = pipeline(
            [back for _, back in batch],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            restore_size=options.original_size,
            **settings,
        ).images
    except NotFiniteError:
        if len(batch) > 1:
            for each in batch:
                yield from _fronts_of_batch(pipeline, [each], settings, options)
            return
        fronts = [None]
    for (job, back), seed, front in zip(batch, seeds, fronts, strict=True):
        yield job, back, seed, front


def _save(picture: PIL.Image.Image, path: Path, metadata: dict) -> bool:
    """Whether the picture was written; if not, that is reported.

    Raises:
        FolderTakesNoMoreError: if no other picture could be written there either.
    """
    from .pictures import save_picture

    try:
        save_picture(picture, path, metadata)
    except OSError as error:
        if error.errno in FOLDER_TAKES_NO_MORE:
            raise FolderTakesNoMoreError(error.errno, error.strerror) from error
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
    """As large as on the sheet: the pictures of all rows are held until the last front is made."""
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
        with _quiet_hub():
            yield
    finally:
        for library, (level, with_bar) in zip(libraries, before):
            library.set_verbosity(level)
            if with_bar:
                library.enable_progress_bar()


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the warnings of huggingface_hub; its progress bars show how long a download or an upload takes."""
    import huggingface_hub.utils.logging

    before = huggingface_hub.utils.logging.get_verbosity()
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        huggingface_hub.utils.logging.set_verbosity(before)


def _text(text: str) -> str:
    """What every encoding can write: names of files may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shortened(refusal: str) -> str:
    half = LONGEST_REFUSAL // 2
    return refusal if len(refusal) <= LONGEST_REFUSAL else f"{refusal[:half]} ... {refusal[-half:]}"


def _report(sentence: str) -> None:
    """One sentence on stderr; if nobody can read it there, the exit code has to do."""
    _say(f"{PROGRAM}: {sentence}", sys.stderr)


def _say(line: str, stream: TextIO | None) -> bool:
    """One line, above a progress bar if there is one, in the characters that the stream has.

    Returns:
        Whether it was written: the stream may be closed, or full.
    """
    if stream is None:  # what Python has for a stream that was closed when the process began
        return False
    line = CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
    encoding = stream.encoding or "utf-8"
    tqdm = sys.modules.get("tqdm")
    try:
        (tqdm.tqdm.write if tqdm else print)(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    except OSError:
        _throw_away(stream)
        return False
    return _flush(stream)


def _flush(stream: TextIO | None) -> bool:
    """Whether all that was written to the stream arrived."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        _throw_away(stream)
        return False
    return stream is not None


def _throw_away(stream: TextIO) -> None:
    """Whatever else is in a broken stream: Python would try to write it at the end, and complain."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
